//! Nonsense on MQTT, in frames written by hand.

use std::io::{Read, Write};

use super::frames::{self, text};
use super::*;

fn packet(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    frames::packet(kind, &parts.concat())
}

fn connect(broker: SocketAddr, id: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(broker)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let id = text(id.as_bytes());
    stream.write_all(&packet(0x10, &[&text(b"MQTT"), &[4, 2, 0, 0], &id]))?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    ensure!(answer == [0x20, 2, 0, 0], "{answer:?}");
    Ok(stream)
}

fn subscribe(stream: &mut TcpStream, filter: &str) -> Result<()> {
    let filter = text(filter.as_bytes());
    stream.write_all(&packet(0x82, &[&[0, 9], &filter, &[0]]))?;
    Ok(())
}

fn publish(topic: &[u8], payload: &[u8]) -> Vec<u8> {
    packet(0x32, &[&text(topic), &[0, 1], payload])
}

/// Whether a publish is acknowledged; `false` when the connection is closed for it.
fn is_acknowledged(broker: SocketAddr, topic: &[u8], payload: &[u8]) -> Result<bool> {
    let mut stream = connect(broker, "nonsense")?;
    stream.write_all(&publish(topic, payload))?;
    let mut answer = [0; 4];
    match stream.read_exact(&mut answer) {
        Ok(()) => Ok(answer == [0x40, 2, 0, 1]),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            anyhow::bail!("neither answered nor closed")
        }
        Err(_) => Ok(false),
    }
}

pub(super) async fn nonsense_on_mqtt(stage: &mut Stage) -> Result<()> {
    let broker = stage.world.place.mqtt;
    let update = b"$hw/events/device/dev/t1/twin/update".as_slice();
    for (topic, payload, is_taken) in [
        (
            b"$hw/events/device/dev/t1/twin/updatee".as_slice(),
            b"{}".as_slice(),
            false,
        ),
        (b"$hw/events/device//twin/update", b"{}", false),
        (b"$hw/events/device/none/such/twin/update", b"{}", true),
        (b"$hw/events/node/other/membership/get", b"{}", true),
        (b"a//b/", b"", true),
        // Bodies that are nothing are answered on the device's topic.
        (update, b"", true),
        (update, b"{", true),
        (
            update,
            b"{\"twin\":{\"temperature\":{\"actual\":{}}}}",
            true,
        ),
        (update, b"{\"actual\":{}}", true),
        (update, b"{\"twin\":{\"temperature\":null}}", true),
        (update, b"\xff\xfe\x00{\x80", true),
        (b"acme/user/line", b"\xff\xfe not text", true),
        // What the protocol forbids ends that connection.
        (b"$hw/events/device/+/t1/twin/update", b"{}", false),
        (b"a/#", b"{}", false),
        (b"", b"{}", false),
        (b"not \xff text", b"{}", false),
        // Only the runtime speaks there.
        (b"$hw/events/device/dev/t1/twin/update/delta", b"{}", false),
    ] {
        let taken = is_acknowledged(broker, topic, payload)?;
        ensure!(
            taken == is_taken,
            "{}: {taken}",
            String::from_utf8_lossy(topic)
        );
    }
    let deep = format!("{{\"twin\":{}", "[".repeat(100_000));
    ensure!(
        is_acknowledged(broker, update, deep.as_bytes())?,
        "a deep body"
    );

    // One that subscribes to everything and never reads.
    let mut deaf = connect(broker, "deaf")?;
    subscribe(&mut deaf, "#")?;
    let mut thermometer = Thermometer::new(broker, "dev/deaf");
    thermometer.publish(1..301, 2000, PATIENCE).await?;
    drop(deaf);
    stage.world.edge()?.check()
}
