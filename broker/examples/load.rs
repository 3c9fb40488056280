//! Publishes as fast as a broker acknowledges and says how fast that was.
//!
//! ```text
//! cargo run --release -p broker --example load -- 127.0.0.1:1883 <connections> <messages each> [topic]
//! ```
//!
//! Each connection keeps 100 QoS 1 publishes of 200 bytes in flight, and checks that they are
//! acknowledged in order. `{n}` in the topic is the connection's number.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::time::Instant;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const WINDOW: usize = 100;
const PAYLOAD_BYTES: usize = 200;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let addr = args.next().unwrap_or_else(|| "127.0.0.1:1883".into());
    let connections: usize = args.next().map_or(Ok(1), |n| n.parse())?;
    let messages: usize = args.next().map_or(Ok(10_000), |n| n.parse())?;
    let topic = args.next().unwrap_or_else(|| "load/user/{n}".into());
    let started = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for number in 0..connections {
        let topic = topic.replace("{n}", &number.to_string());
        running.spawn(publish(
            addr.clone(),
            format!("load-{number}"),
            topic,
            messages,
        ));
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    let secs = started.elapsed().as_secs_f64();
    let total = connections * messages;
    println!("{total} acknowledged in {secs:.2} s by {connections} connections");
    println!(
        "microseconds each: {:.1}",
        secs * 1e6 / f64::from(u32::try_from(total)?)
    );
    Ok(())
}

async fn publish(
    addr: String,
    client: String,
    topic: String,
    messages: usize,
) -> anyhow::Result<()> {
    let stream = TcpStream::connect(&addr).await.context("cannot connect")?;
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut connect = vec![0x10, u8::try_from(12 + client.len())?];
    connect.extend(b"\x00\x04MQTT\x04\x02\x00\x00\x00");
    connect.push(u8::try_from(client.len())?);
    connect.extend(client.as_bytes());
    write.write_all(&connect).await?;
    let mut connack = [0; 4];
    read.read_exact(&mut connack).await?;
    ensure!(connack[3] == 0, "refused: {}", connack[3]);

    let (mut sent, mut acknowledged) = (0, 0);
    let mut out = Vec::new();
    while acknowledged < messages {
        while sent < messages && sent - acknowledged < WINDOW {
            sent += 1;
            put_publish(&mut out, &topic, id_of(sent)?)?;
        }
        write.write_all(&out).await?;
        out.clear();
        // At least one acknowledgement, and all that came with it.
        loop {
            let mut puback = [0; 4];
            read.read_exact(&mut puback).await?;
            acknowledged += 1;
            let id = u16::from_be_bytes([puback[2], puback[3]]);
            ensure!(
                puback[0] == 0x40 && id == id_of(acknowledged)?,
                "out of order"
            );
            if read.buffer().len() < 4 {
                break;
            }
        }
    }
    Ok(())
}

fn id_of(number: usize) -> anyhow::Result<u16> {
    Ok(u16::try_from(number % 60_000)? + 1)
}

fn put_publish(out: &mut Vec<u8>, topic: &str, id: u16) -> anyhow::Result<()> {
    let len = 2 + topic.len() + 2 + PAYLOAD_BYTES;
    out.push(0x32);
    out.push(u8::try_from(len & 0x7f)? | 0x80);
    out.push(u8::try_from(len >> 7)?);
    out.extend(u16::try_from(topic.len())?.to_be_bytes());
    out.extend(topic.as_bytes());
    out.extend(id.to_be_bytes());
    out.resize(out.len() + PAYLOAD_BYTES, b'x');
    Ok(())
}
