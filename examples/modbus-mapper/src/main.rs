//! A mapper for Modbus TCP.
//!
//! `spec.protocol.configData`: `address` (`host:port`), `unit` (default 1).
//! `visitors.configData`: `register` (`holding`, `input`, `coil` or `discrete`; default `holding`),
//! `offset`, and `scale`: what one count is worth (default 1).

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use mapper_kit::{Connection, Device, Driver, Options, Property};
use tokio::time::timeout;
use tokio_modbus::client::{Context, Reader, Writer, tcp};
use tokio_modbus::slave::Slave;

/// A device that has not answered by then counts as gone.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// A mapper for Modbus TCP.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    options: Options,
}

struct Modbus;

#[async_trait::async_trait]
impl Driver for Modbus {
    async fn connect(&self, device: &Device) -> Result<Box<dyn Connection>> {
        let address = device.settings.get("address").context("no `address`")?;
        let unit = device.settings.get("unit").map_or("1", String::as_str);
        let unit = Slave(whole(unit).context("`unit`")?);
        let address = tokio::net::lookup_host(address).await?.next();
        let address = address.context("`address` names no host")?;
        let context = timeout(ANSWER_WITHIN, tcp::connect_slave(address, unit)).await??;
        Ok(Box::new(Unit(context)))
    }
}

struct Unit(Context);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    Holding,
    Input,
    Coil,
    Discrete,
}

/// Where a property is.
struct Place {
    table: Table,
    offset: u16,
    scale: f64,
}

impl Place {
    fn of(property: &Property) -> Result<Self> {
        let setting = |name: &str| property.settings.get(name).map(String::as_str);
        let table = match setting("register").unwrap_or("holding") {
            "holding" => Table::Holding,
            "input" => Table::Input,
            "coil" => Table::Coil,
            "discrete" => Table::Discrete,
            other => bail!("`register` is `{other}`"),
        };
        let scale: f64 = setting("scale").unwrap_or("1").parse()?;
        ensure!(scale.is_finite() && scale != 0.0, "`scale` is {scale}");
        Ok(Self {
            table,
            offset: whole(setting("offset").context("no `offset`")?).context("`offset`")?,
            scale,
        })
    }

    fn value(&self, counts: u16) -> String {
        let value = f64::from(counts) * self.scale;
        // 0.1 × 215 is not 21.5 in binary.
        ((value * 1e6).round() / 1e6).to_string()
    }

    fn counts(&self, value: &str) -> Result<u16> {
        let value: f64 = value.parse().context("the desired value is no number")?;
        whole(&(value / self.scale).round().to_string()).context("the desired value does not fit")
    }
}

/// A whole number; KubeEdge hands numbers on as floats.
fn whole<T: TryFrom<i64>>(text: &str) -> Result<T> {
    let number: i64 = match text.split_once('.') {
        Some((number, rest)) if rest.bytes().all(|digit| digit == b'0') => number.parse()?,
        _ => text.parse()?,
    };
    T::try_from(number).ok().context("out of range")
}

#[async_trait::async_trait]
impl Connection for Unit {
    async fn read(&mut self, property: &Property) -> Result<String> {
        let place = Place::of(property)?;
        let at = place.offset;
        let context = &mut self.0;
        let words = async {
            Ok::<_, anyhow::Error>(match place.table {
                Table::Holding => context
                    .read_holding_registers(at, 1)
                    .await??
                    .first()
                    .copied(),
                Table::Input => context.read_input_registers(at, 1).await??.first().copied(),
                Table::Coil => context
                    .read_coils(at, 1)
                    .await??
                    .first()
                    .map(|on| u16::from(*on)),
                Table::Discrete => {
                    let read = context.read_discrete_inputs(at, 1).await??;
                    read.first().map(|on| u16::from(*on))
                }
            })
        };
        let word = timeout(ANSWER_WITHIN, words)
            .await??
            .context("an empty answer")?;
        Ok(match place.table {
            Table::Holding | Table::Input => place.value(word),
            Table::Coil | Table::Discrete => (word != 0).to_string(),
        })
    }

    async fn write(&mut self, property: &Property, value: &str) -> Result<()> {
        let place = Place::of(property)?;
        let at = place.offset;
        let context = &mut self.0;
        let written = async {
            match place.table {
                Table::Holding => {
                    let counts = place.counts(value)?;
                    context.write_single_register(at, counts).await??;
                }
                Table::Coil => context.write_single_coil(at, value == "true").await??,
                Table::Input | Table::Discrete => bail!("{} cannot be written", property.name),
            }
            Ok(())
        };
        timeout(ANSWER_WITHIN, written).await?
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    mapper_kit::run(Args::parse().options, Modbus).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_kubeedge_sends_them() {
        assert_eq!(whole::<u16>("502.0").unwrap(), 502);
        assert_eq!(whole::<u16>("502").unwrap(), 502);
        for bad in ["", "502.5", "-1", "65536", "x"] {
            assert!(whole::<u16>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_and_values() {
        let place = Place {
            table: Table::Holding,
            offset: 0,
            scale: 0.1,
        };
        assert_eq!(place.value(215), "21.5");
        assert_eq!(place.counts("21.5").unwrap(), 215);
        assert!(place.counts("-1").is_err());
        assert!(place.counts("7000").is_err());
    }
}
