//! A thermometer that speaks MQTT 3.1.1, as a device maker would write it.
//!
//! It reports `temperature`, obeys the desired `sample-rate` (readings per second), and says how
//! many readings were acknowledged. An acknowledged reading is on the node's disk.
//!
//! ```text
//! thermometer --broker 127.0.0.1:1883 --device default/thermometer --count 10
//! ```

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Parser;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde_json::{Value, json};

/// A thermometer on MQTT.
#[derive(Parser)]
struct Args {
    /// The node's broker.
    #[arg(long, default_value = "127.0.0.1:1883")]
    broker: String,
    /// `<namespace>/<name>` of the Device object.
    #[arg(long, default_value = "default/thermometer")]
    device: String,
    /// Readings to send; 0 goes on for ever.
    #[arg(long, default_value_t = 10)]
    count: u64,
    /// First temperature, in degrees Celsius.
    #[arg(long, default_value_t = 20.0)]
    start: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let Some((host, port)) = args.broker.rsplit_once(':') else {
        bail!("--broker must be HOST:PORT, not `{}`", args.broker);
    };
    let topic = |suffix: &str| format!("$hw/events/device/{}/{suffix}", args.device);
    let mut options = MqttOptions::new(format!("example-{}", args.device), host, port.parse()?);
    options.set_keep_alive(Duration::from_secs(30));
    let (client, mut events) = AsyncClient::new(options, 16);
    client
        .subscribe(topic("twin/update/delta"), QoS::AtLeastOnce)
        .await?;
    // Asking for the twin brings desired values that were set while we were away.
    client
        .publish(topic("twin/get"), QoS::AtLeastOnce, false, "{}")
        .await?;

    let mut rate = 1_u32;
    let (mut sent, mut acknowledged) = (0_u64, 0_i64);
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    while args.count == 0 || acknowledged < i64::try_from(args.count)? {
        tokio::select! {
            event = events.poll() => match event {
                Ok(Event::Incoming(Packet::PubAck(ack))) if ack.pkid > 1 => acknowledged += 1,
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    let delta: Value = serde_json::from_slice(&publish.payload)?;
                    let wanted = delta["delta"]["sample-rate"].as_str().and_then(|v| v.parse().ok());
                    if let Some(wanted) = wanted.filter(|w| (1..=1000).contains(w)) {
                        rate = wanted;
                        tick = tokio::time::interval(Duration::from_secs(1) / rate);
                        say(&format!("the cloud wants {rate} readings per second"));
                        let report = reading("sample-rate", &rate.to_string(), "int");
                        client.publish(topic("twin/update"), QoS::AtLeastOnce, false, report).await?;
                        // Its acknowledgement is not a reading's.
                        acknowledged -= 1;
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    say(&format!("{error}; trying again"));
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            },
            _ = tick.tick(), if args.count == 0 || sent < args.count => {
                let celsius = args.start + f64::from(u32::try_from(sent % 50)?) / 10.0;
                let report = reading("temperature", &format!("{celsius:.1}"), "float");
                client.publish(topic("twin/update"), QoS::AtLeastOnce, false, report).await?;
                sent += 1;
            }
        }
    }
    say(&format!(
        "{acknowledged} readings sent and acknowledged, at {rate} per second"
    ));
    client.disconnect().await?;
    Ok(())
}

fn reading(property: &str, value: &str, kind: &str) -> String {
    json!({
        "event_id": "", "timestamp": 0,
        "twin": {property: {"actual": {"value": value}, "metadata": {"type": kind}}},
    })
    .to_string()
}

#[expect(clippy::print_stdout, reason = "an example program speaks to its user")]
fn say(line: &str) {
    println!("{line}");
}
