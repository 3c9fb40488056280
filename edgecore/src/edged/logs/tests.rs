use std::io::Write;
use std::path::Path;

use proptest::prelude::*;

use super::lines::Lines;
use super::*;

fn entry(time: &str, stream: Stream, partial: bool, text: &str) -> String {
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    let tag = if partial { "P" } else { "F" };
    format!("{time} {stream} {tag} {text}\n")
}

fn second(number: u32) -> String {
    format!(
        "2024-05-01T10:{:02}:{:02}.000000005Z",
        number / 60,
        number % 60
    )
}

/// Lines `line <from>`, … one a second.
fn numbered(from: u32, to: u32) -> String {
    (from..to)
        .map(|n| entry(&second(n), Stream::Stdout, false, &format!("line {n}")))
        .collect()
}

/// What `numbered` shows as.
fn lines(from: u32, to: u32) -> String {
    let lines: Vec<String> = (from..to).map(|n| format!("line {n}\n")).collect();
    lines.concat()
}

fn shown(chunks: &[Chunk]) -> String {
    let bytes: Vec<u8> = chunks.iter().flat_map(|c| c.bytes.clone()).collect();
    String::from_utf8(bytes).unwrap()
}

fn read_all(path: &Path, query: &Query) -> String {
    let mut reader = LogReader::open(path, query).unwrap();
    let mut out = Vec::new();
    while reader.step(&mut out).unwrap() == Step::More {}
    out.extend(reader.finish());
    shown(&out)
}

#[test]
fn entries_of_every_kind() {
    let read =
        |line: &str| parse(line.as_bytes()).map(|e| (e.stream, e.is_partial, e.text.to_vec()));
    for (line, expected) in [
        (
            "2024-05-01T10:00:00Z stdout F a b",
            Some((Stream::Stdout, false, b"a b".to_vec())),
        ),
        (
            "2024-05-01T10:00:00.1+02:00 stderr P x",
            Some((Stream::Stderr, true, b"x".to_vec())),
        ),
        (
            "2024-05-01T10:00:00Z stdout P:extra x",
            Some((Stream::Stdout, true, b"x".to_vec())),
        ),
        (
            "2024-05-01T10:00:00Z stdout F ",
            Some((Stream::Stdout, false, Vec::new())),
        ),
        (
            "2024-05-01T10:00:00Z stdout F",
            Some((Stream::Stdout, false, Vec::new())),
        ),
        ("2024-05-01T10:00:00Z stdin F x", None),
        ("2024-05-01T10:00:00Z stdout X x", None),
        ("yesterday stdout F x", None),
        ("2024-05-01T10:00:00Z", None),
        ("", None),
    ] {
        assert_eq!(read(line), expected, "{line}");
    }
}

#[test]
fn tail_since_limit_and_times_over_rotated_and_compressed_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let gzip = std::fs::File::create(dir.path().join("0.log.2.gz")).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(gzip, flate2::Compression::fast());
    gzip.write_all(numbered(0, 10).as_bytes()).unwrap();
    gzip.finish().unwrap();
    std::fs::write(dir.path().join("0.log.1"), numbered(10, 20)).unwrap();
    std::fs::write(&path, numbered(20, 30) + "torn by a power cut").unwrap();
    let with = |change: fn(&mut Query)| {
        let mut query = Query::default();
        change(&mut query);
        read_all(&path, &query)
    };
    assert_eq!(with(|_| ()), lines(0, 30));
    assert_eq!(with(|q| q.tail = Some(3)), lines(27, 30));
    assert_eq!(with(|q| q.tail = Some(10)), lines(20, 30));
    assert_eq!(with(|q| q.tail = Some(25)), lines(5, 30));
    assert_eq!(with(|q| q.tail = Some(99)), lines(0, 30));
    assert_eq!(with(|q| q.tail = Some(0)), "");
    assert_eq!(with(|q| q.limit_bytes = Some(10)), "line 0\nlin");
    assert_eq!(with(|q| q.since = second(15).parse().ok()), lines(15, 30));
    assert_eq!(
        with(|q| (q.since, q.tail) = (second(15).parse().ok(), Some(20))),
        lines(15, 30)
    );
    assert_eq!(
        with(|q| (q.timestamps, q.tail) = (true, Some(1))),
        format!("{} line 29\n", second(29))
    );
}

#[test]
fn a_long_line_stays_whole_whatever_the_other_stream_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let at = second(1);
    let older =
        entry(&at, Stream::Stdout, true, "AAA") + &entry(&at, Stream::Stderr, false, "err 1");
    std::fs::write(dir.path().join("0.log.1"), older).unwrap();
    let newer = entry(&at, Stream::Stdout, true, "BBB")
        + &entry(&at, Stream::Stderr, false, "err 2")
        + &entry(&at, Stream::Stdout, false, "CCC")
        + &entry(&at, Stream::Stdout, true, "unfinished");
    std::fs::write(&path, newer).unwrap();
    assert_eq!(
        read_all(&path, &Query::default()),
        "AAABBBCCC\nerr 1\nerr 2\nunfinished"
    );
    let tail = Query {
        tail: Some(2),
        ..Query::default()
    };
    assert_eq!(read_all(&path, &tail), "err 1\nerr 2\nunfinished");
}

#[test]
fn an_absent_log_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none/0.log");
    let opened = LogReader::open(&path, &Query::default());
    assert!(matches!(opened, Err(LogError::Absent { .. })));
}

struct Tailed {
    dir: tempfile::TempDir,
    received: tokio::sync::mpsc::Receiver<Chunk>,
    text: String,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    pumping: tokio::task::JoinHandle<Result<(), LogError>>,
}

impl Tailed {
    fn start(existing: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, existing).unwrap();
        let (out, received) = tokio::sync::mpsc::channel(CHUNKS_MAX);
        let (end, ended) = tokio::sync::oneshot::channel();
        let pumping = tokio::spawn(async move {
            let query = Query {
                follow: true,
                ..Query::default()
            };
            let ended = async move { drop(ended.await) };
            pump(&path, &query, ended, out).await
        });
        Self {
            dir,
            received,
            text: String::new(),
            end: Some(end),
            pumping,
        }
    }

    fn append(&self, text: &str) {
        let mut file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.dir.path().join("0.log"))
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    async fn until(&mut self, wanted: &str) {
        let limit = std::time::Duration::from_secs(20);
        while self.text != wanted {
            let chunk = tokio::time::timeout(limit, self.received.recv()).await;
            let chunk = chunk
                .unwrap_or_else(|_| panic!("only {:?}", self.text))
                .unwrap();
            self.text.push_str(&shown(&[chunk]));
        }
    }
}

#[tokio::test]
async fn following_sees_writes_rotations_and_the_end() {
    let mut tailed = Tailed::start(&numbered(0, 1));
    tailed.until("line 0\n").await;
    tailed.append(&numbered(1, 2));
    tailed.until("line 0\nline 1\n").await;
    // Half an entry, then its rest.
    let whole = numbered(2, 3);
    tailed.append(&whole[..10]);
    tailed.append(&whole[10..]);
    tailed.until("line 0\nline 1\nline 2\n").await;
    // Written, rotated twice and written again before the reader looks.
    let root = tailed.dir.path().to_owned();
    let at = |name: &str| root.join(name);
    tailed.append(&numbered(3, 4));
    std::fs::rename(at("0.log"), at("0.log.1")).unwrap();
    tailed.append(&numbered(4, 5));
    std::fs::rename(at("0.log.1"), at("0.log.2")).unwrap();
    std::fs::rename(at("0.log"), at("0.log.1")).unwrap();
    tailed.append(&numbered(5, 9));
    tailed.until(&lines(0, 9)).await;
    // Cut in place, as a logger that keeps one file does.
    let file = std::fs::File::options()
        .write(true)
        .open(at("0.log"))
        .unwrap();
    file.set_len(0).unwrap();
    drop(file);
    tailed.text.clear();
    tailed.append(&numbered(9, 10));
    tailed.until("line 9\n").await;
    tailed.append(&numbered(10, 11));
    drop(tailed.end.take());
    tailed.until("line 9\nline 10\n").await;
    assert_eq!(tailed.received.recv().await, None);
    tailed.pumping.await.unwrap().unwrap();
}

#[tokio::test]
async fn following_ends_when_the_logger_has_written_everything() {
    use rustix::fs::{FlockOperation, flock};
    let mut tailed = Tailed::start(&numbered(0, 1));
    let log = tailed.dir.path().join("0.log");
    let lock = std::fs::File::options().append(true).open(&log).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    tailed.until("line 0\n").await;
    drop(tailed.end.take());
    // The container is over; its words are on their way, and the log is rotated on top.
    tailed.append(&numbered(1, 2));
    tailed.until("line 0\nline 1\n").await;
    let fresh = tailed.dir.path().join("0.log.new");
    let next = std::fs::File::create(&fresh).unwrap();
    flock(&next, FlockOperation::NonBlockingLockExclusive).unwrap();
    std::fs::rename(&log, tailed.dir.path().join("0.log.1")).unwrap();
    std::fs::rename(&fresh, &log).unwrap();
    drop(lock);
    tailed.append(&numbered(2, 3));
    tailed.until("line 0\nline 1\nline 2\n").await;
    assert!(!tailed.pumping.is_finished());
    drop(next);
    assert_eq!(tailed.received.recv().await, None);
    tailed.pumping.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_logger_that_never_comes_to_an_end_is_not_waited_for_for_ever() {
    use rustix::fs::{FlockOperation, flock};
    let mut tailed = Tailed::start(&numbered(0, 1));
    let lock = std::fs::File::open(tailed.dir.path().join("0.log")).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    tailed.until("line 0\n").await;
    let begun = tokio::time::Instant::now();
    drop(tailed.end.take());
    assert_eq!(tailed.received.recv().await, None);
    assert_eq!(begun.elapsed().as_secs(), 5);
    tailed.pumping.await.unwrap().unwrap();
}

#[tokio::test]
async fn following_ends_when_nobody_listens() {
    let mut tailed = Tailed::start(&numbered(0, 1));
    tailed.until("line 0\n").await;
    tailed.received.close();
    tailed.pumping.await.unwrap().unwrap();
}

fn stream() -> impl Strategy<Value = Stream> {
    prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)]
}

/// Lines as `(stream, fragments)`.
fn written() -> impl Strategy<Value = Vec<(Stream, Vec<String>)>> {
    let fragments = prop::collection::vec("[a-z ]{0,6}", 1..4);
    prop::collection::vec((stream(), fragments), 0..12)
}

/// The entries of both streams, mixed as the choices say.
fn mixed(lines: &[(Stream, Vec<String>)], choices: &[bool]) -> Vec<u8> {
    let of = |wanted: Stream| {
        let mut entries: std::collections::VecDeque<String> = lines
            .iter()
            .filter(|(stream, _)| *stream == wanted)
            .flat_map(|(stream, fragments)| {
                let last = fragments.len() - 1;
                fragments
                    .iter()
                    .enumerate()
                    .map(move |(n, text)| entry("2024-05-01T10:00:00Z", *stream, n < last, text))
            })
            .collect();
        entries.make_contiguous();
        entries
    };
    let (mut out, mut err) = (of(Stream::Stdout), of(Stream::Stderr));
    let mut bytes = Vec::new();
    let mut choices = choices.iter().cycle();
    while let Some(entry) = if *choices.next().unwrap() {
        out.pop_front().or_else(|| err.pop_front())
    } else {
        err.pop_front().or_else(|| out.pop_front())
    } {
        bytes.extend(entry.into_bytes());
    }
    bytes
}

proptest! {
    #[test]
    fn no_bytes_confuse_the_parser(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(entry) = parse(&bytes) {
            prop_assert!(bytes.ends_with(entry.text));
        }
    }

    #[test]
    fn every_line_comes_out_whole_and_in_its_streams_order(
        lines in written(),
        choices in prop::collection::vec(any::<bool>(), 1..40),
        tail in prop::option::of(0_u64..14),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let bytes = mixed(&lines, &choices);
        // Two files, cut between any two entries.
        let ends: Vec<usize> = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(n, _)| n + 1).collect();
        let cut = ends.get(ends.len() / 2).copied().unwrap_or(0);
        std::fs::write(dir.path().join("0.log.1"), &bytes[..cut]).unwrap();
        std::fs::write(&path, &bytes[cut..]).unwrap();

        let query = Query { tail, ..Query::default() };
        let mut reader = LogReader::open(&path, &query).unwrap();
        let mut chunks = Vec::new();
        while reader.step(&mut chunks).unwrap() == Step::More {}
        chunks.extend(reader.finish());

        let total = u64::try_from(lines.len()).unwrap();
        prop_assert_eq!(
            u64::try_from(shown(&chunks).lines().count()).unwrap(),
            tail.map_or(total, |tail| tail.min(total))
        );
        for stream in [Stream::Stdout, Stream::Stderr] {
            let seen: String = chunks.iter().filter(|c| c.stream == stream).map(|c| shown(std::slice::from_ref(c))).collect();
            let all: String = lines.iter().filter(|(s, _)| *s == stream).map(|(_, f)| f.concat() + "\n").collect();
            prop_assert!(all.ends_with(&seen), "{:?} is no end of {:?}", seen, all);
            if tail.is_none() {
                prop_assert_eq!(seen, all);
            }
        }
    }

    #[test]
    fn never_more_bytes_than_asked(limit in 0_u64..60, count in 0_u32..20) {
        let mut selected = Lines::new(&Query { limit_bytes: Some(limit), ..Query::default() }, 0);
        let text = numbered(0, count);
        for line in text.lines() {
            selected.push(&parse(line.as_bytes()).unwrap());
        }
        let all = lines(0, count);
        let wanted = usize::try_from(limit).unwrap().min(all.len());
        prop_assert_eq!(shown(&selected.take()), &all[..wanted]);
    }
}
