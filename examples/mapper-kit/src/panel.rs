//! The devices at work, one task each, and the service that edgecore calls to change them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dmi::v1beta1 as pb;
use dmi::v1beta1::device_mapper_service_server::DeviceMapperService;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

use crate::edge::Edge;
use crate::{Connection, Device, Driver, say};

/// Pauses between attempts to reach a device.
const RECONNECT_FIRST: Duration = Duration::from_millis(500);
const RECONNECT_MAX: Duration = Duration::from_secs(30);

type Key = (String, String);

struct Running {
    message: pb::Device,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Default)]
struct State {
    models: HashMap<Key, pb::DeviceModel>,
    devices: HashMap<Key, Running>,
}

/// Clones share it.
#[derive(Clone)]
pub(crate) struct Panel {
    driver: Arc<dyn Driver>,
    edge: Edge,
    state: Arc<Mutex<State>>,
}

impl Panel {
    pub(crate) fn new(driver: Arc<dyn Driver>, edge: Edge) -> Self {
        Self {
            driver,
            edge,
            state: Arc::default(),
        }
    }

    /// Makes the devices exactly these: the answer to a registration.
    pub(crate) fn set(&self, answer: pb::MapperRegisterResponse) {
        let mut state = self.lock();
        for model in answer.model_list {
            state
                .models
                .insert(key(&model.namespace, &model.name), model);
        }
        let listed: Vec<Key> = answer
            .device_list
            .iter()
            .map(|device| key(&device.namespace, &device.name))
            .collect();
        state.devices.retain(|key, _| listed.contains(key));
        for device in answer.device_list {
            self.put(&mut state, device);
        }
    }

    /// Starts a device, or starts it anew if it is another now.
    fn put(&self, state: &mut State, message: pb::Device) {
        let key = key(&message.namespace, &message.name);
        let reference = message.spec.as_ref().map(|spec| {
            let model = &spec.device_model_reference;
            (message.namespace.clone(), model.clone())
        });
        let model = reference.and_then(|key| state.models.get(&key));
        let device = Device::new(&message, model);
        // The old task ends before the new one begins.
        state.devices.remove(&key);
        let task = tokio::spawn(serve(device, Arc::clone(&self.driver), self.edge.clone()));
        state.devices.insert(key, Running { message, task });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}

/// Serves one device until the task is dropped.
async fn serve(device: Device, driver: Arc<dyn Driver>, edge: Edge) {
    let id = format!("{}/{}", device.namespace, device.name);
    let mut pause = RECONNECT_FIRST;
    loop {
        let started = Instant::now();
        let error = match driver.connect(&device).await {
            Ok(mut connection) => {
                edge.report_state(&device, "online").await;
                match poll(&device, &mut *connection, &edge).await {
                    Ok(never) => match never {},
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        say(&format!("{id}: {error:#}"));
        edge.report_state(&device, "offline").await;
        if started.elapsed() > RECONNECT_MAX {
            pause = RECONNECT_FIRST;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RECONNECT_MAX);
    }
}

/// Writes what is desired, then reads for ever.
async fn poll(
    device: &Device,
    connection: &mut dyn Connection,
    edge: &Edge,
) -> anyhow::Result<std::convert::Infallible> {
    for property in device
        .properties
        .iter()
        .filter(|property| property.writable)
    {
        if let Some(desired) = &property.desired {
            connection.write(property, desired).await?;
        }
    }
    let mut due: Vec<Instant> = vec![Instant::now(); device.properties.len()];
    loop {
        for (property, due) in device.properties.iter().zip(&mut due) {
            if *due > Instant::now() {
                continue;
            }
            let value = connection.read(property).await?;
            if property.reported {
                edge.report(device, property, value).await;
            }
            *due = Instant::now() + property.cycle;
        }
        let next = due.iter().min().copied();
        let next = next.unwrap_or_else(|| Instant::now() + RECONNECT_MAX);
        tokio::time::sleep_until(next.into()).await;
    }
}

#[tonic::async_trait]
impl DeviceMapperService for Panel {
    async fn register_device(
        &self,
        request: Request<pb::RegisterDeviceRequest>,
    ) -> Result<Response<pb::RegisterDeviceResponse>, Status> {
        let device = request.into_inner().device;
        let device = device.ok_or_else(|| Status::invalid_argument("no device"))?;
        let answer = pb::RegisterDeviceResponse {
            device_name: device.name.clone(),
            device_namespace: device.namespace.clone(),
        };
        self.put(&mut self.lock(), device);
        Ok(Response::new(answer))
    }

    async fn remove_device(
        &self,
        request: Request<pb::RemoveDeviceRequest>,
    ) -> Result<Response<pb::RemoveDeviceResponse>, Status> {
        let request = request.into_inner();
        let key = key(&request.device_namespace, &request.device_name);
        self.lock().devices.remove(&key);
        Ok(Response::new(pb::RemoveDeviceResponse {}))
    }

    async fn update_device(
        &self,
        request: Request<pb::UpdateDeviceRequest>,
    ) -> Result<Response<pb::UpdateDeviceResponse>, Status> {
        let device = request.into_inner().device;
        let device = device.ok_or_else(|| Status::invalid_argument("no device"))?;
        self.put(&mut self.lock(), device);
        Ok(Response::new(pb::UpdateDeviceResponse {}))
    }

    async fn create_device_model(
        &self,
        request: Request<pb::CreateDeviceModelRequest>,
    ) -> Result<Response<pb::CreateDeviceModelResponse>, Status> {
        let model = request.into_inner().model;
        let model = model.ok_or_else(|| Status::invalid_argument("no model"))?;
        let answer = pb::CreateDeviceModelResponse {
            device_model_name: model.name.clone(),
            device_model_namespace: model.namespace.clone(),
        };
        let key = key(&model.namespace, &model.name);
        self.lock().models.insert(key, model);
        Ok(Response::new(answer))
    }

    async fn remove_device_model(
        &self,
        request: Request<pb::RemoveDeviceModelRequest>,
    ) -> Result<Response<pb::RemoveDeviceModelResponse>, Status> {
        let request = request.into_inner();
        let key = key(&request.model_namespace, &request.model_name);
        self.lock().models.remove(&key);
        Ok(Response::new(pb::RemoveDeviceModelResponse {}))
    }

    async fn update_device_model(
        &self,
        request: Request<pb::UpdateDeviceModelRequest>,
    ) -> Result<Response<pb::UpdateDeviceModelResponse>, Status> {
        let model = request.into_inner().model;
        let model = model.ok_or_else(|| Status::invalid_argument("no model"))?;
        let mut state = self.lock();
        let users: Vec<pb::Device> = state
            .devices
            .values()
            .map(|running| &running.message)
            .filter(|device| {
                let reference = device.spec.as_ref().map(|s| &s.device_model_reference);
                device.namespace == model.namespace && reference == Some(&model.name)
            })
            .cloned()
            .collect();
        let key = key(&model.namespace, &model.name);
        state.models.insert(key, model);
        for device in users {
            self.put(&mut state, device);
        }
        Ok(Response::new(pb::UpdateDeviceModelResponse {}))
    }

    async fn get_device(
        &self,
        request: Request<pb::GetDeviceRequest>,
    ) -> Result<Response<pb::GetDeviceResponse>, Status> {
        let request = request.into_inner();
        let key = key(&request.device_namespace, &request.device_name);
        let device = self.lock().devices.get(&key).map(|it| it.message.clone());
        match device {
            Some(device) => Ok(Response::new(pb::GetDeviceResponse {
                device: Some(device),
            })),
            None => Err(Status::not_found("device not found")),
        }
    }
}
