//! Puts the hub together: opens the data directory, binds, starts every long-lived task.

use std::{net::SocketAddr, path::Path, sync::Arc};

use ::http::StatusCode;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    config::Config,
    facts::{Facts, MemoryFacts},
    listen::{
        api::{self, ApiState},
        bootstrap, http as https,
        tls::{ClientAuth, server_config},
    },
    pki::{Enrollment, Pki},
    supervise::{Exit, Supervisor},
};

/// The bound addresses, also in `<data_dir>/ports.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ports {
    /// Kubernetes API.
    pub api: u16,
    /// Nodes' sessions.
    pub websocket: u16,
    /// Joining.
    pub bootstrap: u16,
}

/// A hub that has been put together and runs.
pub struct Hub {
    /// The bound ports.
    pub ports: Ports,
    tasks: Supervisor,
}

impl Hub {
    /// Opens the data directory, binds all listeners, starts all tasks.
    pub async fn start(config: Config, stop: CancellationToken) -> Result<Self, anyhow::Error> {
        // For libraries that cannot be given a provider; a second start in one process is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        private_dir(&config.data_dir)?;
        let now = clock::unix_secs();
        let pki = Arc::new(Pki::open(&config.data_dir, &config.server_names(), now)?);
        let facts: Arc<dyn Facts> = Arc::new(MemoryFacts::default());
        let enrollment = Arc::new(Enrollment::new(
            Arc::clone(&pki.authority),
            pki.token_secret(),
            Arc::clone(&facts),
        ));
        let api = bind(config.listen.api, "listen.api").await?;
        let websocket = bind(config.listen.websocket, "listen.websocket").await?;
        let join = bind(config.listen.bootstrap, "listen.bootstrap").await?;
        let ports = Ports {
            api: api.local_addr()?.port(),
            websocket: websocket.local_addr()?.port(),
            bootstrap: join.local_addr()?.port(),
        };
        let mut tasks = Supervisor::new(stop);
        let h2 = ["h2", "http/1.1"];

        let tls = server_config(
            &pki.authority,
            &pki.server,
            ClientAuth::OptionalEvenExpired,
            &h2,
        )?;
        let (shared, stop) = (Arc::clone(&enrollment), tasks.stop());
        tasks.spawn("bootstrap listener", async move {
            https::serve(join, tls, stop, move |peer, request| {
                bootstrap::handle(Arc::clone(&shared), peer, request)
            })
            .await
        });

        let tls = server_config(&pki.authority, &pki.server, ClientAuth::Optional, &h2)?;
        let state = Arc::new(ApiState {
            pki: Arc::clone(&pki),
            enrollment,
        });
        let stop = tasks.stop();
        tasks.spawn("api listener", async move {
            https::serve(api, tls, stop, move |peer, request| {
                let state = Arc::clone(&state);
                async move {
                    match api::authenticate(&state.pki, &peer, request.headers()) {
                        Ok(caller) => api::outpost(&state, &caller, request).await,
                        Err(_) => {
                            api::status(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
                        }
                    }
                }
            })
            .await
        });

        finish(&config, &pki, &ports)?;
        Ok(Self { ports, tasks })
    }

    /// Runs until asked to stop or a task fails.
    pub async fn run(self) -> Exit {
        self.tasks.run().await
    }
}

fn finish(config: &Config, pki: &Pki, ports: &Ports) -> Result<(), anyhow::Error> {
    let ip = config.listen.api.ip();
    let host = if ip.is_unspecified() {
        std::net::IpAddr::from([127, 0, 0, 1])
    } else {
        ip
    };
    let kubeconfig =
        pki.write_kubeconfig(&format!("https://{}", SocketAddr::from((host, ports.api))))?;
    crate::pki::files::write_private(
        &config.data_dir.join("ports.json"),
        &serde_json::to_vec(ports)?,
    )?;
    tracing::info!(
        api = ports.api,
        websocket = ports.websocket,
        bootstrap = ports.bootstrap,
        kubeconfig = %kubeconfig.display(),
        "hub is up"
    );
    Ok(())
}

async fn bind(address: SocketAddr, key: &str) -> Result<TcpListener, anyhow::Error> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{key}: cannot listen on {address}"))
}

fn private_dir(path: &Path) -> Result<(), anyhow::Error> {
    use std::os::unix::fs::DirBuilderExt;
    if !path.is_dir() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("`{}` could not be created", path.display()))?;
    }
    Ok(())
}
