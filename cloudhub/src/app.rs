//! Puts the hub together: opens the data directory and the store, binds, starts every long-lived
//! task. The only place that makes channels and tasks, beside one task per connection.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use apiserver::{
    Api, Options,
    authn::AllowMasters,
    http::Service,
    store::{SqliteStore, Store},
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    accounts::Accounts,
    clock,
    config::{Config, Forward},
    crds, device_events, device_status, downstream,
    events::{self, Recorder},
    facts::Facts,
    kube::Kube,
    ledger::Ledger,
    listen::{
        api::{self, ApiState},
        bootstrap, http as https,
        tls::{ClientAuth, server_config},
        ws::{self, WsState},
    },
    node::{evict::Evictor, lease::Leases, lifecycle::Lifecycle},
    pki::{Enrollment, Pki, enroll::NODES_PREFIX},
    readings::{self, Bounds, Forwarder, Health, Intake, Readings, Target},
    rules::{
        self,
        ask::Asks,
        rest::{self, Rest, Waiting},
        tally::Tallies,
    },
    scheduler::Scheduler,
    session::{Registry, Services},
    supervise::{Exit, Supervisor},
    upstream::{self, Upstream},
    volumes,
};

/// The bound ports, also in `<data_dir>/ports.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ports {
    /// Kubernetes API.
    pub api: u16,
    /// Nodes' sessions.
    pub websocket: u16,
    /// Joining.
    pub bootstrap: u16,
    /// Rules whose source is HTTP, where they have a port of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<u16>,
}

/// A hub that has been put together and runs.
pub struct Hub {
    /// The bound ports.
    pub ports: Ports,
    tasks: Supervisor,
}

/// The listening sockets.
struct Listeners {
    api: TcpListener,
    websocket: TcpListener,
    bootstrap: TcpListener,
    router: Option<TcpListener>,
}

/// What several tasks share.
struct Parts {
    config: Config,
    pki: Arc<Pki>,
    enrollment: Arc<Enrollment>,
    kube: Kube,
    accounts: Arc<Accounts>,
    store: Arc<dyn Store>,
    registry: Arc<Registry>,
    ledger: Arc<Ledger>,
    leases: Arc<Leases>,
    readings: Option<Readings>,
    health: Health,
    intake: Intake,
    waiting: Waiting,
    tallies: Tallies,
}

impl Hub {
    /// Opens the data directory, binds all listeners, starts all tasks.
    pub async fn start(config: Config, stop: CancellationToken) -> Result<Self, anyhow::Error> {
        // For libraries that cannot be given a provider; a second start in one process is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        private_dir(&config.data_dir)?;
        let listeners = Listeners {
            api: bind(config.listen.api, "listen.api").await?,
            websocket: bind(config.listen.websocket, "listen.websocket").await?,
            bootstrap: bind(config.listen.bootstrap, "listen.bootstrap").await?,
            router: match config.router.listen {
                Some(address) => Some(bind(address, "router.listen").await?),
                None => None,
            },
        };
        let ports = Ports {
            api: listeners.api.local_addr()?.port(),
            websocket: listeners.websocket.local_addr()?.port(),
            bootstrap: listeners.bootstrap.local_addr()?.port(),
            router: match &listeners.router {
                Some(listener) => Some(listener.local_addr()?.port()),
                None => None,
            },
        };
        let parts = open(config).await?;
        let mut tasks = Supervisor::new(stop);
        start_controllers(&mut tasks, &parts);
        start_readings(&mut tasks, &parts);
        start_listeners(&mut tasks, &parts, listeners)?;
        announce(&parts, &ports)?;
        Ok(Self { ports, tasks })
    }

    /// Runs until asked to stop or a task fails.
    pub async fn run(self) -> Exit {
        self.tasks.run().await
    }
}

async fn open(config: Config) -> Result<Parts, anyhow::Error> {
    let now = clock::unix_secs();
    let pki = Arc::new(Pki::open(&config.data_dir, &config.server_names(), now)?);
    let path = config.data_dir.join("hub.db");
    private_file(&path)?;
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&path).with_context(|| {
        format!(
            "the hub's store `{}` could not be opened; restore it from a backup, or move it \
                 away to start with an empty one",
            path.display()
        )
    })?);
    let options = Options {
        root_ca: pki.authority.pem().to_owned(),
        joined: NODES_PREFIX,
        ..Options::default()
    };
    let api = Api::open(Arc::clone(&store), options).await?;
    let kube = Kube::new(api);
    crds::install(&kube)
        .await
        .context("the device kinds could not be installed")?;
    volumes::install(&kube)
        .await
        .context("the storage class could not be installed")?;
    let accounts = Arc::new(Accounts::open(&config.data_dir, kube.clone())?);
    let enrollment = Arc::new(Enrollment::new(
        Arc::clone(&pki.authority),
        pki.token_secret(),
        Facts::new(Arc::clone(&store)),
    ));
    let readings = open_readings(&config)?;
    Ok(Parts {
        intake: Intake::new(readings.clone(), Arc::clone(&store)),
        readings,
        health: Health::default(),
        waiting: Waiting::default(),
        tallies: Tallies::default(),
        registry: Arc::new(Registry::new(Instant::now())),
        ledger: Arc::new(Ledger::new(
            Arc::clone(&store),
            config.history.readings_per_node,
        )),
        leases: Arc::new(Leases::default()),
        config,
        pki,
        enrollment,
        kube,
        accounts,
        store,
    })
}

fn start_controllers(tasks: &mut Supervisor, parts: &Parts) {
    let stop = tasks.stop();
    let api = parts.kube.api().clone();
    tasks.spawn("api housekeeping", async move {
        tokio::select! {
            () = api.run() => {}
            () = stop.cancelled() => {}
        }
        Ok(())
    });
    let recorder = Arc::new(Recorder::new(parts.kube.clone()));
    tasks.spawn(
        "scheduler",
        Scheduler::new(parts.kube.clone(), Arc::clone(&recorder)).run(tasks.stop()),
    );
    tasks.spawn(
        "volumes",
        volumes::Controller::new(parts.kube.clone()).run(tasks.stop()),
    );
    let lifecycle = Lifecycle {
        kube: parts.kube.clone(),
        registry: Arc::clone(&parts.registry),
        leases: Arc::clone(&parts.leases),
        recorder: Arc::clone(&recorder),
        limits: parts.config.session.clone(),
    };
    tasks.spawn("node lifecycle", lifecycle.run(tasks.stop()));
    let limits = &parts.config.session;
    let evictor = Evictor {
        kube: parts.kube.clone(),
        recorder: Arc::clone(&recorder),
        grace: Duration::from_secs(limits.gone_secs.min(limits.silent_secs)),
    };
    tasks.spawn("pod eviction", evictor.run(tasks.stop()));
    tasks.spawn(
        "device statuses",
        device_status::run(Arc::clone(&parts.store), tasks.stop()),
    );
    tasks.spawn(
        "device events",
        device_events::run(
            Arc::clone(&parts.store),
            Arc::clone(&recorder),
            tasks.stop(),
        ),
    );
    let controller = rules::Controller {
        kube: parts.kube.clone(),
        readings: parts.readings.clone(),
        recorder: Arc::clone(&recorder),
    };
    tasks.spawn("rules", controller.run(tasks.stop()));
    let (tallies, kube) = (parts.tallies.clone(), parts.kube.clone());
    tasks.spawn("rule counts", tallies.run(kube, recorder, tasks.stop()));
    let ttl_secs = parts.config.history.event_ttl_secs;
    let (store, kube) = (Arc::clone(&parts.store), parts.kube.clone());
    tasks.spawn(
        "event expiry",
        events::prune(store, kube, ttl_secs, tasks.stop()),
    );
}

fn open_readings(config: &Config) -> Result<Option<Readings>, anyhow::Error> {
    let telemetry = &config.telemetry;
    if !telemetry.enabled {
        return Ok(None);
    }
    let path = config.data_dir.join("readings.db");
    private_file(&path)?;
    let bounds = Bounds {
        age_secs: telemetry.age_secs_max,
        bytes: telemetry.bytes_max,
    };
    let opened = Readings::open(&path, bounds).with_context(|| {
        format!(
            "the readings' database `{}` could not be opened; move it away to start with an empty \
             one",
            path.display()
        )
    })?;
    Ok(Some(opened))
}

fn start_readings(tasks: &mut Supervisor, parts: &Parts) {
    let Some(readings) = &parts.readings else {
        return;
    };
    tasks.spawn(
        "readings housekeeping",
        readings::housekeep(readings.clone(), tasks.stop()),
    );
    let telemetry = &parts.config.telemetry;
    let mut names = std::collections::BTreeSet::new();
    for forward in &telemetry.forward {
        if forward.name.is_empty() || !names.insert(&forward.name) {
            // Its place in the readings is kept under its name.
            tracing::error!(
                name = forward.name,
                "telemetry.forward: an entry without a name of its own is left out"
            );
            continue;
        }
        let (settings, age_secs_max) = (forward.clone(), telemetry.age_secs_max);
        let make = move || {
            forwarder(&settings, age_secs_max)
                .map_err(|error| format!("telemetry.forward: `{}`: {error:#}", settings.name))
        };
        tasks.spawn(
            "forwarder",
            readings::forward(
                readings.clone(),
                forward.name.clone(),
                make,
                parts.health.clone(),
                tasks.stop(),
            ),
        );
    }
}

fn forwarder(forward: &Forward, age_secs_max: u64) -> Result<Forwarder, anyhow::Error> {
    let read = |path: &Path| -> Result<String, anyhow::Error> {
        if path.as_os_str().is_empty() {
            return Ok(String::new());
        }
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("`{}` could not be read", path.display()))?;
        Ok(text.trim().to_owned())
    };
    let target = match (forward.url.as_str(), forward.broker.as_str()) {
        ("", "") => anyhow::bail!("`url` or `broker` has to say where to"),
        (url, "") => Target::Http {
            url: url.to_owned(),
            token: read(&forward.token_file)?,
        },
        ("", broker) => Target::Mqtt {
            broker: broker.to_owned(),
            tls: forward.tls,
            prefix: if forward.topic_prefix.is_empty() {
                "outpost".to_owned()
            } else {
                forward.topic_prefix.clone()
            },
            user: forward.user.clone(),
            password: read(&forward.password_file)?,
        },
        (_, _) => anyhow::bail!("`url` and `broker` exclude each other"),
    };
    Ok(Forwarder {
        name: forward.name.clone(),
        target,
        ttl_secs: if forward.ttl_secs == 0 {
            age_secs_max
        } else {
            forward.ttl_secs
        },
        ca_pem: Some(read(&forward.ca_file)?).filter(|pem| !pem.is_empty()),
    })
}

fn start_listeners(
    tasks: &mut Supervisor,
    parts: &Parts,
    listeners: Listeners,
) -> Result<(), anyhow::Error> {
    let h2 = ["h2", "http/1.1"];
    let (authority, leaf) = (&parts.pki.authority, &parts.pki.server);

    let (downstream, controller) =
        downstream::new(Arc::clone(&parts.store), Arc::clone(&parts.registry));
    tasks.spawn("downstream", controller.run(tasks.stop()));
    let upstream = Upstream::new(
        parts.kube.clone(),
        downstream.clone(),
        Arc::clone(&parts.ledger),
        parts.intake.clone(),
        Arc::clone(&parts.leases),
        (Arc::clone(&parts.accounts), authority.pem().to_owned()),
        upstream::Rules {
            waiting: parts.waiting.clone(),
            asks: Asks::new(parts.kube.clone(), parts.tallies.clone()),
        },
    );
    let services = Arc::new(Services {
        registry: Arc::clone(&parts.registry),
        upstream,
        ledger: Arc::clone(&parts.ledger),
        intake: parts.intake.clone(),
        waiting: parts.waiting.clone(),
        downstream,
    });
    let tls = server_config(authority, leaf, ClientAuth::Required, &["http/1.1"])?;
    let state = Arc::new(WsState {
        enrollment: Arc::clone(&parts.enrollment),
        services,
        limits: parts.config.session.clone(),
    });
    tasks.spawn(
        "websocket listener",
        ws::serve(listeners.websocket, tls, tasks.stop(), state),
    );

    let tls = server_config(authority, leaf, ClientAuth::OptionalEvenExpired, &h2)?;
    let (shared, stop) = (Arc::clone(&parts.enrollment), tasks.stop());
    let registry = Arc::clone(&parts.registry);
    tasks.spawn("bootstrap listener", async move {
        https::serve(listeners.bootstrap, tls, stop, move |peer, request| {
            bootstrap::handle(Arc::clone(&shared), Arc::clone(&registry), peer, request)
        })
        .await
    });

    let tls = server_config(authority, leaf, ClientAuth::Optional, &h2)?;
    let state =
        Arc::new(ApiState {
            pki: Arc::clone(&parts.pki),
            enrollment: Arc::clone(&parts.enrollment),
            ledger: Arc::clone(&parts.ledger),
            readings: parts.readings.clone(),
            health: parts.health.clone(),
            rest: Rest {
                kube: parts.kube.clone(),
                registry: Arc::clone(&parts.registry),
                waiting: parts.waiting.clone(),
                tallies: parts.tallies.clone(),
                answer_within: Duration::from_secs(parts.config.router.answer_secs_max.max(1)),
                room: rest::Room::default(),
            },
            service: Service::new(parts.kube.api().clone(), Arc::new(AllowMasters))
                .with_tokens(Arc::<Accounts>::clone(&parts.accounts)),
            accounts: Arc::clone(&parts.accounts),
        });
    if let Some(listener) = listeners.router {
        let (state, stop) = (Arc::clone(&state), tasks.stop());
        let is_anonymous = parts.config.router.anonymous;
        tasks.spawn("router listener", async move {
            https::serve(listener, None, stop, move |peer, request| {
                api::router(Arc::clone(&state), is_anonymous, peer, request)
            })
            .await
        });
    }
    let stop = tasks.stop();
    tasks.spawn("api listener", async move {
        https::serve(listeners.api, tls, stop, move |peer, request| {
            api::handle(Arc::clone(&state), peer, request)
        })
        .await
    });
    Ok(())
}

/// Writes the kubeconfig and the ports: whoever waits for them finds a hub that answers.
fn announce(parts: &Parts, ports: &Ports) -> Result<(), anyhow::Error> {
    let config = &parts.config;
    let ip = config.listen.api.ip();
    let host = if ip.is_unspecified() {
        std::net::IpAddr::from([127, 0, 0, 1])
    } else {
        ip
    };
    let kubeconfig = parts
        .pki
        .write_kubeconfig(&format!("https://{}", SocketAddr::from((host, ports.api))))?;
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
    TcpListener::bind(address).await.with_context(|| {
        format!(
            "{key}: cannot listen on {address}: has another program, or another hub, the port, \
                 and is the address this machine's?"
        )
    })
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

/// The store holds Secrets; SQLite gives its other files the permissions of this one.
fn private_file(path: &Path) -> Result<(), anyhow::Error> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("`{}` could not be opened", path.display()))?;
    Ok(())
}
