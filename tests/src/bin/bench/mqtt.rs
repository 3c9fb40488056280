//! The broker alone beside mosquitto with persistence on: the same publishers, the same
//! subscriber, one after the other.
//!
//! Fan-in at QoS 1: twenty publishers with ten messages of 200 bytes on their way each, one
//! subscriber with a persistent session that acknowledges what it gets. Ours stores every message
//! for that session before PUBACK; mosquitto acknowledges from memory and writes its file later.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outpost_tests::process::Process;
use outpost_tests::wait;
use outpost_tests::world::{World, free_port, path};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::PATIENCE;
use crate::figures::{Figures, ms_round, say};

const PUBLISHERS: usize = 20;
const MESSAGES: usize = 2_000;
const WINDOW: usize = 10;
const PAYLOAD_BYTES: usize = 200;
const TOPIC: &str = "bench/fan-in";

/// Both brokers; the better of three runs each.
pub(crate) async fn mqtt(world: &World, figures: &mut Figures) -> Result<()> {
    say("the broker alone, beside mosquitto …");
    let dir = world.place.dir.join("mqtt");
    std::fs::create_dir_all(&dir)?;
    let ours = free_port()?;
    let mut command = Command::new(world.place.bins.join("examples/broker"));
    command
        .arg(ours.to_string())
        .arg(dir.join("broker.db"))
        .env_remove("RUST_LOG");
    let mut process = Process::start("broker", &dir.join("broker.log"), &mut command)?;
    let ours_per_s = best(ours, &mut process).await?;
    process.stop().await?;
    figures.insert("broker_fan_in_per_s", ms_round(ours_per_s));

    let theirs = free_port()?;
    let config = dir.join("mosquitto.conf");
    let text = format!(
        "listener {} 127.0.0.1\nallow_anonymous true\npersistence true\n\
         persistence_location {}/\nuser root\nmax_queued_messages 100000\n",
        theirs.port(),
        path(&dir)?
    );
    std::fs::write(&config, text)?;
    let mut command = Command::new("mosquitto");
    command.args(["-c", path(&config)?]);
    let mut process = Process::start("mosquitto", &dir.join("mosquitto.log"), &mut command)?;
    let theirs_per_s = best(theirs, &mut process).await?;
    process.stop().await?;
    figures.insert("mosquitto_fan_in_per_s", ms_round(theirs_per_s));
    figures.insert(
        "broker_fan_in_per_mosquitto",
        ms_round(ours_per_s / theirs_per_s),
    );
    Ok(())
}

async fn best(broker: SocketAddr, process: &mut Process) -> Result<f64> {
    wait::until("the broker", PATIENCE, async || {
        process.check()?;
        Ok(TcpStream::connect(broker).await.ok().map(drop))
    })
    .await?;
    let mut best: f64 = 0.0;
    for _ in 0..3 {
        best = best.max(fan_in(broker).await?);
    }
    Ok(best)
}

/// Messages a second, from the first publish until the subscriber has all of them and every
/// publisher its last acknowledgement.
async fn fan_in(broker: SocketAddr) -> Result<f64> {
    let total = PUBLISHERS * MESSAGES;
    let subscriber = subscribe(broker).await?;
    let received = tokio::spawn(receive(subscriber, total));
    let started = Instant::now();
    let mut publishers = tokio::task::JoinSet::new();
    for number in 0..PUBLISHERS {
        publishers.spawn(publish(broker, number));
    }
    while let Some(ended) = publishers.join_next().await {
        ended??;
    }
    tokio::time::timeout(PATIENCE, received)
        .await
        .context("the subscriber did not get everything")???;
    Ok(f64::from(u32::try_from(total)?) / started.elapsed().as_secs_f64())
}

async fn connect(broker: SocketAddr, client: &str, is_clean: bool) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(broker).await?;
    stream.set_nodelay(true)?;
    let mut packet = vec![0x10, u8::try_from(12 + client.len())?];
    packet.extend(b"\x00\x04MQTT\x04");
    packet.extend([
        u8::from(is_clean) << 1,
        0,
        0,
        0,
        u8::try_from(client.len())?,
    ]);
    packet.extend(client.as_bytes());
    stream.write_all(&packet).await?;
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).await?;
    ensure!(connack[3] == 0, "refused: {}", connack[3]);
    Ok(stream)
}

async fn subscribe(broker: SocketAddr) -> Result<TcpStream> {
    // What the run before did not acknowledge in time is not of this one.
    drop(connect(broker, "bench-reader", true).await?);
    let mut stream = connect(broker, "bench-reader", false).await?;
    let mut packet = vec![0x82, u8::try_from(5 + TOPIC.len())?, 0, 1, 0];
    packet.push(u8::try_from(TOPIC.len())?);
    packet.extend(TOPIC.as_bytes());
    packet.push(1);
    stream.write_all(&packet).await?;
    let mut suback = [0; 5];
    stream.read_exact(&mut suback).await?;
    ensure!(suback[4] == 1, "not subscribed: {suback:?}");
    Ok(stream)
}

/// Reads `count` publishes of QoS 1 and acknowledges each.
async fn receive(stream: TcpStream, count: usize) -> Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::with_capacity(64 << 10, read);
    let mut acks = Vec::new();
    let mut body = Vec::new();
    for _ in 0..count {
        let head = read.read_u8().await?;
        ensure!(head & 0xf6 == 0x32, "not a publish of QoS 1: {head:#x}");
        let (mut len, mut shift) = (0_usize, 0);
        loop {
            let byte = read.read_u8().await?;
            len |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        body.resize(len, 0);
        read.read_exact(&mut body).await?;
        let id = body
            .get(2 + TOPIC.len()..4 + TOPIC.len())
            .context("short")?;
        acks.extend([0x40, 2, id[0], id[1]]);
        if read.buffer().is_empty() {
            write.write_all(&acks).await?;
            acks.clear();
        }
    }
    write.write_all(&acks).await?;
    Ok(())
}

async fn publish(broker: SocketAddr, number: usize) -> Result<()> {
    let stream = connect(broker, &format!("bench-{number}"), true).await?;
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let (mut sent, mut acknowledged) = (0, 0);
    let mut out = Vec::new();
    while acknowledged < MESSAGES {
        while sent < MESSAGES && sent - acknowledged < WINDOW {
            sent += 1;
            put_publish(&mut out, u16::try_from(sent)?)?;
        }
        write.write_all(&out).await?;
        out.clear();
        // At least one acknowledgement, and all that came with it.
        loop {
            let mut puback = [0; 4];
            tokio::time::timeout(Duration::from_secs(30), read.read_exact(&mut puback)).await??;
            ensure!(puback[0] == 0x40, "not an acknowledgement");
            acknowledged += 1;
            if read.buffer().len() < 4 {
                break;
            }
        }
    }
    Ok(())
}

fn put_publish(out: &mut Vec<u8>, id: u16) -> Result<()> {
    let len = 2 + TOPIC.len() + 2 + PAYLOAD_BYTES;
    out.push(0x32);
    out.push(u8::try_from(len & 0x7f)? | 0x80);
    out.push(u8::try_from(len >> 7)?);
    out.extend(u16::try_from(TOPIC.len())?.to_be_bytes());
    out.extend(TOPIC.as_bytes());
    out.extend(id.to_be_bytes());
    out.resize(out.len() + PAYLOAD_BYTES, b'x');
    Ok(())
}
