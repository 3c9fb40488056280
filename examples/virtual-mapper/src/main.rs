//! A mapper for devices that exist in memory alone: to see the way of a value without hardware,
//! and to begin a mapper of one's own from.
//!
//! A property holds what was written to it last, else `visitors.configData.start`; with
//! `visitors.configData.step` it grows by that much with each reading.

use std::collections::HashMap;

use anyhow::{Context, Result};
use clap::Parser;
use mapper_kit::{Connection, Device, Driver, Options, Property};

/// A mapper for virtual devices.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    options: Options,
}

struct Virtual;

#[async_trait::async_trait]
impl Driver for Virtual {
    async fn connect(&self, _device: &Device) -> Result<Box<dyn Connection>> {
        Ok(Box::new(Memory::default()))
    }
}

#[derive(Default)]
struct Memory(HashMap<String, String>);

#[async_trait::async_trait]
impl Connection for Memory {
    async fn read(&mut self, property: &Property) -> Result<String> {
        let setting = |name: &str| property.settings.get(name).cloned();
        let value = self
            .0
            .entry(property.name.clone())
            .or_insert_with(|| setting("start").unwrap_or_else(|| "0".to_owned()));
        let told = value.clone();
        if let Some(step) = setting("step") {
            let step: f64 = step.parse().context("`step` is no number")?;
            let now: f64 = value.parse().context("the value is no number")?;
            *value = (now + step).to_string();
        }
        Ok(told)
    }

    async fn write(&mut self, property: &Property, value: &str) -> Result<()> {
        self.0.insert(property.name.clone(), value.to_owned());
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    mapper_kit::run(Args::parse().options, Virtual).await
}
