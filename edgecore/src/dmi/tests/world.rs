//! A node's side and scripted mappers.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::dmi::v1beta1 as pb;
use ::dmi::v1beta1::device_manager_service_client::DeviceManagerServiceClient;
use ::dmi::v1beta1::device_mapper_service_server::{
    DeviceMapperService, DeviceMapperServiceServer,
};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use wire::message::{Content, Message, Operation, Route};

use crate::dmi::{Admission, DmiConfig, DmiDeps, DmiError, DmiHandle, MapperSummary, Pace, start};
use crate::meta::{Sealer, apply};
use crate::store::Store;
use crate::{outbox, twin};

/// Longest wait for anything, on a busy machine.
pub(super) const SOON: Duration = Duration::from_secs(20);

/// The node: store and interface, on a directory that outlives it.
pub(super) struct Node {
    pub dir: PathBuf,
    pub store: Store,
    pub handle: DmiHandle,
    pub link_wake: Arc<Notify>,
    devices: watch::Sender<u64>,
    pub deltas: watch::Sender<u64>,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), DmiError>>,
}

pub(super) fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    dir
}

impl Node {
    pub(super) async fn start(dir: &Path) -> Self {
        Self::start_with(dir, Admission::default(), 200).await
    }

    pub(super) async fn start_with(dir: &Path, admission: Admission, calls: u32) -> Self {
        let (store, _, _) = Store::open(&dir.join("edgecore.db")).unwrap();
        store.write(|tx| twin::set_node(tx, "n1")).await.unwrap();
        let (stop, devices) = (CancellationToken::new(), watch::Sender::new(1));
        let deltas = watch::Sender::new(1);
        let link_wake = Arc::new(Notify::new());
        let config = DmiConfig {
            socket: dir.join("dmi.sock"),
            admission,
            calls_per_second: calls,
            pace: Pace {
                first: Duration::from_millis(20),
                unreachable_max: Duration::from_millis(100),
                refused_max: Duration::from_millis(200),
                call: Duration::from_secs(5),
            },
        };
        let deps = DmiDeps {
            store: store.clone(),
            bus: None,
            link_wake: Arc::clone(&link_wake),
            devices: devices.subscribe(),
            deltas: deltas.subscribe(),
        };
        drop(std::fs::remove_file(dir.join("dmi.sock")));
        let (handle, serving) = start(config, deps, stop.clone());
        let serving = tokio::spawn(serving);
        let bound = async {
            while !dir.join("dmi.sock").exists() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, bound).await.unwrap();
        Self {
            dir: dir.to_owned(),
            store,
            handle,
            link_wake,
            devices,
            deltas,
            stop,
            serving,
        }
    }

    /// Stops as edgecore does.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.serving.await.unwrap().unwrap();
        self.store.close();
    }

    /// A push of the hub, as `source` sends it.
    pub(super) async fn push(&self, source: &str, operation: Operation, path: &str, body: Value) {
        let route = Route::new(source, "resource", &operation, path);
        let message = Message::new("1", 1, route, Content::json(&body).unwrap());
        let sealer = Sealer::new(&[7; 32]).unwrap();
        let applied = self
            .store
            .write(move |tx| apply(tx, &sealer, "n1", &message, 1))
            .await
            .unwrap();
        if applied.devices_changed {
            self.devices.send_modify(|generation| *generation += 1);
        }
    }

    pub(super) async fn put_device(&self, device: Value) {
        let name = device["metadata"]["name"].as_str().unwrap();
        let path = format!("dev/device/{name}");
        self.push("devicecontroller", Operation::Update, &path, device)
            .await;
    }

    pub(super) async fn put_model(&self, model: Value) {
        let name = model["metadata"]["name"].as_str().unwrap();
        let path = format!("dev/devicemodel/{name}");
        self.push("devicecontroller", Operation::Update, &path, model)
            .await;
    }

    pub(super) async fn delete_device(&self, name: &str) {
        let path = format!("dev/device/{name}");
        self.push("devicecontroller", Operation::Delete, &path, json!({}))
            .await;
    }

    /// What waits for the hub: the bodies, oldest first.
    pub(super) async fn reports(&self) -> Vec<Value> {
        let rows = self.store.read(|tx| outbox::pending(tx, 0, 10_000)).await;
        let of = |bytes: &[u8]| {
            let message = Message::decode(bytes).unwrap();
            message.content.decode::<Value>().unwrap()
        };
        rows.unwrap().iter().map(|row| of(&row.message)).collect()
    }

    /// Those of the twin of one device.
    pub(super) async fn reports_of(&self, device: &str) -> Vec<Value> {
        let resource = format!("device/dev/{device}/twin/edge_updated");
        let rows = self.store.read(|tx| outbox::pending(tx, 0, 10_000)).await;
        let messages = rows.unwrap();
        let messages = messages
            .iter()
            .map(|row| Message::decode(&row.message).unwrap());
        messages
            .filter(|message| message.route.resource == resource)
            .map(|message| message.content.decode::<Value>().unwrap())
            .collect()
    }

    /// A publish of a local client.
    pub(super) async fn publish(&self, topic: &str, payload: &'static [u8]) -> twin::Outcome {
        let topic = wire::topic::parse(topic).unwrap();
        let handled = self
            .store
            .write(move |tx| twin::handle_publish(tx, &topic, payload, 2));
        handled.await.unwrap()
    }

    /// Waits until the store is as `accept` wants it.
    pub(super) async fn until(&self, what: &str, accept: impl AsyncFn(&Self) -> bool) {
        let reached = async {
            while !accept(self).await {
                tokio::task::yield_now().await;
            }
        };
        let reached = tokio::time::timeout(SOON, reached).await;
        reached.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"));
    }

    /// The twin's reported value.
    pub(super) async fn reported(&self, device: &str, property: &str) -> Option<String> {
        let (device, property) = (device.to_owned(), property.to_owned());
        let read = self
            .store
            .read(move |tx| twin::document(tx, "dev", &device));
        let device = read.await.unwrap()?;
        let reported = device.properties.get(&property)?.reported.clone();
        reported.map(|reported| reported.value)
    }

    pub(super) async fn client(&self) -> DeviceManagerServiceClient<Channel> {
        let socket = self.dir.join("dmi.sock");
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                let stream = UnixStream::connect(socket).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::try_from("http://[::]").unwrap();
        DeviceManagerServiceClient::new(endpoint.connect_with_connector(connector).await.unwrap())
    }

    pub(super) async fn register(
        &self,
        name: &str,
        socket: &Path,
    ) -> Result<pb::MapperRegisterResponse, Status> {
        let request = pb::MapperRegisterRequest {
            with_data: true,
            mapper: Some(info(name, socket)),
        };
        let answer = self.client().await.mapper_register(request).await;
        answer.map(Response::into_inner)
    }

    pub(super) async fn report(&self, device: &str, twins: Vec<pb::Twin>) -> Result<(), Status> {
        let request = report(device, twins);
        let answer = self.client().await.report_device_status(request).await;
        answer.map(|_| ())
    }

    /// Waits until `accept` likes the summary of a mapper.
    pub(super) async fn mapper(&self, name: &str, accept: impl Fn(&MapperSummary) -> bool) {
        let mut board = self.handle.board.watch();
        reached(&mut board, name, |all| all.get(name).is_some_and(&accept)).await;
    }
}

pub(super) fn info(name: &str, socket: &Path) -> pb::MapperInfo {
    pb::MapperInfo {
        name: name.to_owned(),
        version: "v1".to_owned(),
        api_version: "v1beta1".to_owned(),
        protocol: "acme".to_owned(),
        address: socket.as_os_str().as_encoded_bytes().to_vec(),
        state: "ok".to_owned(),
    }
}

pub(super) fn report(device: &str, twins: Vec<pb::Twin>) -> pb::ReportDeviceStatusRequest {
    pb::ReportDeviceStatusRequest {
        device_name: device.to_owned(),
        device_namespace: "dev".to_owned(),
        reported_device: Some(pb::DeviceStatus {
            twins,
            ..pb::DeviceStatus::default()
        }),
    }
}

pub(super) fn reading(property: &str, value: &str) -> pb::Twin {
    pb::Twin {
        property_name: property.to_owned(),
        reported: Some(pb::TwinProperty {
            value: value.to_owned(),
            ..pb::TwinProperty::default()
        }),
        ..pb::Twin::default()
    }
}

/// A device of protocol `acme`, model `m`.
pub(super) fn device(name: &str, desired: &str) -> Value {
    json!({
        "metadata": {"namespace": "dev", "name": name, "uid": format!("u-{name}")},
        "spec": {
            "deviceModelRef": {"name": "m"}, "nodeName": "n1",
            "protocol": {"protocolName": "acme", "configData": {"tty": "/dev/ttyS0"}},
            "properties": [{"name": "level", "desired": {"value": desired}, "reportToCloud": true}],
        },
    })
}

pub(super) fn model(unit: &str) -> Value {
    json!({
        "metadata": {"namespace": "dev", "name": "m", "uid": "u-m"},
        "spec": {"protocol": "acme",
                 "properties": [{"name": "level", "type": "INT", "accessMode": "ReadWrite", "unit": unit}]},
    })
}

/// A node with a model and devices, and its mapper `one`.
pub(super) struct Served {
    pub dir: tempfile::TempDir,
    pub node: Node,
    pub mapper: Mapper,
}

impl Served {
    /// The devices' desired value is 1.
    pub(super) async fn start(devices: &[&str]) -> Self {
        let dir = directory();
        let node = Node::start(dir.path()).await;
        node.put_model(model("")).await;
        for name in devices {
            node.put_device(device(name, "1")).await;
        }
        let mapper = Mapper::start(&dir.path().join("m.sock"));
        let answer = node.register("one", &mapper.socket).await.unwrap();
        assert_eq!(answer.device_list.len(), devices.len());
        Self { dir, node, mapper }
    }
}

/// A mapper that writes down its calls, refuses what it is told to refuse, and takes its time over
/// updates.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    calls: watch::Sender<Vec<String>>,
    /// Calls that begin so, and the reason.
    refuse: watch::Sender<(String, String)>,
    /// Calls that begin so are carried out and not answered.
    lose: watch::Sender<String>,
    is_busy: watch::Sender<bool>,
}

/// A mapper's process.
pub(super) struct Mapper {
    pub script: Script,
    pub socket: PathBuf,
    task: JoinHandle<()>,
}

impl Mapper {
    pub(super) fn start(socket: &Path) -> Self {
        drop(std::fs::remove_file(socket));
        let listener = UnixListener::bind(socket).unwrap();
        let script = Script::default();
        let service = DeviceMapperServiceServer::new(script.clone());
        let serving = Server::builder()
            .add_service(service)
            .serve_with_incoming(UnixListenerStream::new(listener));
        let task = tokio::spawn(async move { serving.await.unwrap() });
        Self {
            script,
            socket: socket.to_owned(),
            task,
        }
    }

    /// As a process that was killed: the socket's file stays.
    pub(super) async fn kill(mut self) {
        self.task.abort();
        drop((&mut self.task).await);
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Script {
    /// Calls that begin so are refused from now on; empty refuses none.
    pub(super) fn refuse(&self, prefix: &str) {
        self.refuse_with(prefix, "the device is busy");
    }

    pub(super) fn refuse_with(&self, prefix: &str, reason: &str) {
        self.refuse
            .send_replace((prefix.to_owned(), reason.to_owned()));
    }

    /// Answers of calls that begin so are lost from now on; empty loses none.
    pub(super) fn lose(&self, prefix: &str) {
        self.lose.send_replace(prefix.to_owned());
    }

    pub(super) fn calls(&self) -> Vec<String> {
        self.calls.borrow().clone()
    }

    pub(super) async fn called(&self, call: &str) {
        self.called_times(call, 1).await;
    }

    pub(super) async fn called_times(&self, call: &str, times: usize) {
        let mut calls = self.calls.subscribe();
        let of = |all: &Vec<String>| all.iter().filter(|one| *one == call).count();
        reached(&mut calls, call, |all| of(all) >= times).await;
    }

    /// Whether updates wait.
    pub(super) fn busy(&self, is_busy: bool) {
        self.is_busy.send_replace(is_busy);
    }

    fn note(&self, call: String) -> Result<(), Status> {
        let (refused, reason) = self.refuse.borrow().clone();
        let is_refused = !refused.is_empty() && call.starts_with(&refused);
        let said = if is_refused {
            format!("refused {call}")
        } else {
            call
        };
        let lost = self.lose.borrow().clone();
        let is_lost = !lost.is_empty() && said.starts_with(&lost);
        self.calls.send_modify(|calls| calls.push(said));
        if is_lost {
            return Err(Status::unavailable("the answer is lost"));
        }
        if is_refused {
            return Err(Status::unknown(reason));
        }
        Ok(())
    }
}

pub(super) fn said(device: Option<pb::Device>) -> String {
    let device = device.unwrap_or_default();
    let desired = device
        .spec
        .iter()
        .flat_map(|spec| &spec.properties)
        .find_map(|property| property.desired.as_ref());
    let desired = desired.map_or("-", |desired| desired.value.as_str());
    format!("{}={desired}", device.name)
}

#[tonic::async_trait]
impl DeviceMapperService for Script {
    async fn register_device(
        &self,
        request: Request<pb::RegisterDeviceRequest>,
    ) -> Result<Response<pb::RegisterDeviceResponse>, Status> {
        self.note(format!("register {}", said(request.into_inner().device)))?;
        Ok(Response::new(pb::RegisterDeviceResponse::default()))
    }

    async fn remove_device(
        &self,
        request: Request<pb::RemoveDeviceRequest>,
    ) -> Result<Response<pb::RemoveDeviceResponse>, Status> {
        self.note(format!("remove {}", request.into_inner().device_name))?;
        Ok(Response::new(pb::RemoveDeviceResponse::default()))
    }

    async fn update_device(
        &self,
        request: Request<pb::UpdateDeviceRequest>,
    ) -> Result<Response<pb::UpdateDeviceResponse>, Status> {
        self.note(format!("update {}", said(request.into_inner().device)))?;
        let mut is_busy = self.is_busy.subscribe();
        reached(&mut is_busy, "an idle mapper", |is_busy| !is_busy).await;
        Ok(Response::new(pb::UpdateDeviceResponse::default()))
    }

    async fn create_device_model(
        &self,
        request: Request<pb::CreateDeviceModelRequest>,
    ) -> Result<Response<pb::CreateDeviceModelResponse>, Status> {
        let model = request.into_inner().model.unwrap_or_default();
        self.note(format!("create model {}", model.name))?;
        Ok(Response::new(pb::CreateDeviceModelResponse::default()))
    }

    async fn remove_device_model(
        &self,
        request: Request<pb::RemoveDeviceModelRequest>,
    ) -> Result<Response<pb::RemoveDeviceModelResponse>, Status> {
        self.note(format!("remove model {}", request.into_inner().model_name))?;
        Ok(Response::new(pb::RemoveDeviceModelResponse::default()))
    }

    async fn update_device_model(
        &self,
        request: Request<pb::UpdateDeviceModelRequest>,
    ) -> Result<Response<pb::UpdateDeviceModelResponse>, Status> {
        let model = request.into_inner().model.unwrap_or_default();
        self.note(format!("update model {}", model.name))?;
        Ok(Response::new(pb::UpdateDeviceModelResponse::default()))
    }

    async fn get_device(
        &self,
        _request: Request<pb::GetDeviceRequest>,
    ) -> Result<Response<pb::GetDeviceResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
}

/// Waits until a watched value is as `accept` wants it.
async fn reached<T: std::fmt::Debug>(
    watched: &mut watch::Receiver<T>,
    what: &str,
    accept: impl Fn(&T) -> bool,
) {
    let waited = tokio::time::timeout(SOON, watched.wait_for(&accept)).await;
    let is_reached = waited.is_ok_and(|reached| reached.is_ok());
    assert!(
        is_reached,
        "not within {SOON:?}: {what}; at last {:?}",
        *watched.borrow()
    );
}
