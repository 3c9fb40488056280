//! What every mapper does, so that a new one is only a [`Driver`]: registers at edgecore, keeps
//! the devices it is told to serve, polls them, reports values and states, and writes what is
//! desired. Restarting either side is no matter: the mapper registers again when edgecore was away.
//!
//! ```text
//! <mapper> --edgecore /etc/kubeedge/dmi.sock --socket /etc/kubeedge/my-mapper.sock
//! ```

mod device;
mod edge;
mod panel;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use dmi::v1beta1 as pb;
use dmi::v1beta1::device_mapper_service_server::DeviceMapperServiceServer;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

pub use device::{Device, Property, Settings};

use edge::Edge;
use panel::Panel;

/// Between attempts to register.
const REGISTER_AGAIN: Duration = Duration::from_secs(2);

/// How devices of a protocol are reached.
#[async_trait::async_trait]
pub trait Driver: Send + Sync + 'static {
    /// Opens a device. Called again, with pauses, after a call of the connection failed.
    async fn connect(&self, device: &Device) -> Result<Box<dyn Connection>>;
}

/// An open device.
#[async_trait::async_trait]
pub trait Connection: Send {
    async fn read(&mut self, property: &Property) -> Result<String>;
    async fn write(&mut self, property: &Property, value: &str) -> Result<()>;
}

/// Options of every mapper.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// edgecore's socket for mappers.
    #[arg(long, default_value = "/etc/kubeedge/dmi.sock")]
    pub edgecore: PathBuf,
    /// The mapper's own socket, which edgecore must be able to reach under the same path.
    #[arg(long)]
    pub socket: PathBuf,
    /// Name of the mapper, one of its own for each instance.
    #[arg(long)]
    pub name: String,
    /// Devices with this `spec.protocol.protocolName` are served.
    #[arg(long)]
    pub protocol: String,
}

/// Serves until the process is told to stop.
pub async fn run(options: Options, driver: impl Driver) -> Result<()> {
    let edge = Edge::new(&options.edgecore)?;
    let panel = Panel::new(Arc::new(driver), edge.clone());
    // A socket that a dead mapper left is in the way.
    drop(std::fs::remove_file(&options.socket));
    let listener = UnixListener::bind(&options.socket)
        .with_context(|| format!("cannot listen on {}", options.socket.display()))?;
    // Listening before registering: edgecore may call at once.
    let service = DeviceMapperServiceServer::new(panel.clone());
    let serving = Server::builder()
        .add_service(service)
        .serve_with_incoming(UnixListenerStream::new(listener));
    let registering = keep_registered(&options, &edge, &panel);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        served = serving => served.context("the mapper's service ended"),
        never = registering => match never {},
        _ = terminate.recv() => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// Registers, and again whenever edgecore is back.
async fn keep_registered(
    options: &Options,
    edge: &Edge,
    panel: &Panel,
) -> std::convert::Infallible {
    loop {
        let mapper = pb::MapperInfo {
            name: options.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api_version: "v1beta1".to_owned(),
            protocol: options.protocol.clone(),
            address: options.socket.as_os_str().as_encoded_bytes().to_vec(),
            state: "ok".to_owned(),
        };
        match edge.register(mapper).await {
            Ok(answer) => {
                say(&format!("registered; {} devices", answer.device_list.len()));
                panel.set(answer);
                edge.back.notified().await;
            }
            Err(status) => {
                say(&format!("cannot register: {}", status.message()));
                tokio::time::sleep(REGISTER_AGAIN).await;
            }
        }
    }
}

/// A line for the operator.
#[expect(clippy::print_stdout, reason = "an example program speaks to its user")]
pub fn say(line: &str) {
    println!("{line}");
}
