//! A message as its row holds it: what every message repeats is not written to flash.
//!
//! A report of one value is some 450 bytes of JSON, of which less than a hundred say something. A
//! page holds two or three folded ones where it held one. Text is UTF-8, in which the bytes `F8` to
//! `FF` never occur: four of them announce what was folded, and rows of before read as they are.
//!
//! | bytes | stand for |
//! |---|---|
//! | `FF` n | phrase n of [`PHRASES`] |
//! | `FE` and 16 bytes | a UUID in its usual writing, lower case |
//! | `FD` and 6 bytes | a number of 13 digits, such as a time in milliseconds |
//! | `FC` b | the byte b itself, one of these four |

/// What messages of twins, states, uploads and events repeat. Each begins with one of `{ } " ,`. Rows
/// on disks of the field name them by position: append, never change.
const PHRASES: &[&str] = &[
    "{\"header\":{\"msg_id\":\"",
    "\",\"timestamp\":",
    "},\"route\":{\"source\":",
    "\"twin\",\"group\":\"resource\",\"operation\":\"update\",\"resource\":\"device/",
    "\"bus\",\"group\":\"user\",\"operation\":\"upload\",\"resource\":\"",
    "\",\"group\":\"",
    "\",\"operation\":\"",
    "\",\"resource\":\"",
    "\"},\"content\":",
    "{\"event_id\":\"",
    ",\"twin\":{\"",
    "\":{\"actual\":{\"value\":\"",
    "\":{\"expected\":{\"value\":\"",
    "\"},\"actual\":{\"value\":\"",
    "\",\"metadata\":{\"timestamp\":",
    "}},\"optional\":false,\"metadata\":{\"type\":\"",
    "}},\"optional\":true,\"metadata\":{\"type\":\"",
    "\"},\"actual_version\":{\"cloud\":0,\"edge\":",
    ",\"actual_version\":{\"cloud\":0,\"edge\":",
    "},\"expected_version\":{\"cloud\":",
    ",\"edge\":",
    "}}}}}\n",
    ",\"device\":{\"name\":\"",
    "\",\"state\":\"",
    "\",\"lastOnlineTime\":\"",
];

const PHRASE: u8 = 0xff;
const UUID: u8 = 0xfe;
const TIME: u8 = 0xfd;
const BYTE: u8 = 0xfc;

/// Hexadecimal digits of a UUID, and its hyphens.
const UUID_LEN: usize = 36;
const TIME_LEN: usize = 13;
/// Bytes that hold 13 digits: the largest is below 2⁴⁴.
const TIME_BYTES: usize = 6;

/// The message as it is stored; [`unfold`] gives it back, byte for byte.
pub(super) fn fold(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len());
    let mut here = message;
    let mut before = 0;
    while let Some(&byte) = here.first() {
        let taken = match byte {
            b'{' | b'}' | b'"' | b',' => fold_phrase(here, &mut out),
            BYTE..=PHRASE => {
                out.push(BYTE);
                None
            }
            _ if before == b'"' => fold_uuid(here, &mut out).or_else(|| fold_time(here, &mut out)),
            _ if before.is_ascii_digit() => None,
            _ => fold_time(here, &mut out),
        };
        let len = taken.unwrap_or_else(|| {
            out.push(byte);
            1
        });
        let (done, rest) = here.split_at(len);
        before = done.last().copied().unwrap_or_default();
        here = rest;
    }
    out
}

fn fold_phrase(here: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let fitting = PHRASES.iter().enumerate();
    let fitting = fitting.filter(|(_, phrase)| here.starts_with(phrase.as_bytes()));
    let (n, phrase) = fitting.max_by_key(|(_, phrase)| phrase.len())?;
    out.extend([PHRASE, u8::try_from(n).ok()?]);
    Some(phrase.len())
}

fn fold_uuid(here: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let text = std::str::from_utf8(here.get(..UUID_LEN)?).ok()?;
    let uuid = uuid::Uuid::try_parse(text).ok()?;
    // What is parsed leniently is written in one way.
    let mut same = [0; UUID_LEN];
    if uuid.hyphenated().encode_lower(&mut same) != text {
        return None;
    }
    out.push(UUID);
    out.extend(uuid.as_bytes());
    Some(UUID_LEN)
}

fn fold_time(here: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let text = std::str::from_utf8(here.get(..TIME_LEN)?).ok()?;
    if text.starts_with('0') || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = text.parse().ok()?;
    out.push(TIME);
    out.extend(number.to_be_bytes().get(8 - TIME_BYTES..)?);
    Some(TIME_LEN)
}

/// The message of a row. What no [`fold`] wrote comes out as something that is no message.
pub(super) fn unfold(row: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(row.len().saturating_mul(3));
    let mut rest = row;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let taken = match byte {
            PHRASE => unfold_phrase(after, &mut out),
            UUID => unfold_uuid(after, &mut out),
            TIME => unfold_time(after, &mut out),
            BYTE => after.first().map(|plain| {
                out.push(*plain);
                1
            }),
            _ => {
                out.push(byte);
                Some(0)
            }
        };
        let Some(len) = taken else {
            out.push(byte);
            continue;
        };
        rest = after.get(len..).unwrap_or_default();
    }
    out
}

fn unfold_phrase(after: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let phrase = PHRASES.get(usize::from(*after.first()?))?;
    out.extend_from_slice(phrase.as_bytes());
    Some(1)
}

fn unfold_uuid(after: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let (bytes, _) = after.split_first_chunk::<16>()?;
    let mut text = [0; UUID_LEN];
    let text = uuid::Uuid::from_bytes(*bytes)
        .hyphenated()
        .encode_lower(&mut text);
    out.extend_from_slice(text.as_bytes());
    Some(bytes.len())
}

fn unfold_time(after: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let (bytes, _) = after.split_first_chunk::<TIME_BYTES>()?;
    let number = bytes.iter().fold(0_u64, |n, b| (n << 8) | u64::from(*b));
    out.extend_from_slice(number.to_string().as_bytes());
    Some(bytes.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REPORT: &str = "{\"header\":{\"msg_id\":\"1b671a64-40d5-491e-99b0-da01ff1f3341\",\"timestamp\":1790000000001},\
        \"route\":{\"source\":\"twin\",\"group\":\"resource\",\"operation\":\"update\",\
        \"resource\":\"device/default/thermometer/twin/edge_updated\"},\"content\":{\
        \"event_id\":\"9b2d0e5c-0f6e-4f3c-8a56-2a4d9c6f1e77\",\"timestamp\":1790000000001,\
        \"twin\":{\"temperature\":{\"actual\":{\"value\":\"21\",\"metadata\":{\"timestamp\":1790000000001}},\
        \"optional\":false,\"metadata\":{\"type\":\"int\"},\"actual_version\":{\"cloud\":0,\"edge\":7}}}}}\n";

    #[test]
    fn a_report_takes_a_third_of_its_text() {
        let row = fold(REPORT.as_bytes());
        assert!(
            row.len() * 3 <= REPORT.len(),
            "{} of {}",
            row.len(),
            REPORT.len()
        );
        assert_eq!(unfold(&row), REPORT.as_bytes());
    }

    #[test]
    fn rows_of_the_field_are_read_for_ever() {
        // Written by the first version that folded. A difference here loses readings of nodes that
        // were away while they were upgraded: mend the code, not the line.
        let row = "ff00fe1b671a6440d5491e99b0da01ff1f3341ff01fd01a0c4506c01ff02ff03";
        let text = "{\"header\":{\"msg_id\":\"1b671a64-40d5-491e-99b0-da01ff1f3341\",\"timestamp\":1790000000001},\
            \"route\":{\"source\":\"twin\",\"group\":\"resource\",\"operation\":\"update\",\"resource\":\"device/";
        assert_eq!(hex::encode(fold(text.as_bytes())), row);
        assert_eq!(unfold(&hex::decode(row).unwrap()), text.as_bytes());
        assert_eq!(
            unfold(REPORT.as_bytes()),
            REPORT.as_bytes(),
            "rows of before"
        );
    }

    #[test]
    fn what_looks_alike_is_left_alone() {
        for text in [
            "\"1B671A64-40D5-491E-99B0-DA01FF1F3341\"",
            "\"1b671a6440d5491e99b0da01ff1f3341\"",
            "\"{1b671a64-40d5-491e-99b0-da01ff1f3341\"",
            "0123456789012",
            "1234",
            "\"9999999999999\"",
            "12345678901234567890123456",
        ] {
            assert_eq!(unfold(&fold(text.as_bytes())), text.as_bytes(), "{text}");
        }
    }

    fn piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            any::<Vec<u8>>(),
            prop::sample::select(PHRASES).prop_map(|phrase| phrase.as_bytes().to_vec()),
            any::<u128>().prop_map(|n| format!("\"{}\"", uuid::Uuid::from_u128(n)).into_bytes()),
            "[0-9]{1,30}".prop_map(String::into_bytes),
            Just(REPORT.as_bytes().to_vec()),
        ]
    }

    proptest! {
        #[test]
        fn every_message_comes_back(pieces in prop::collection::vec(piece(), 0..12), cut in any::<prop::sample::Index>()) {
            let mut message = pieces.concat();
            message.truncate(cut.index(message.len() + 1));
            prop_assert_eq!(unfold(&fold(&message)), message);
        }

        #[test]
        fn no_row_stops_the_reader(row in any::<Vec<u8>>()) {
            prop_assert!(unfold(&row).len() <= row.len() * 80);
        }
    }
}
