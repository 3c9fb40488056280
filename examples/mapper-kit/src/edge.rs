//! The calls to edgecore.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dmi::v1beta1 as pb;
use dmi::v1beta1::device_manager_service_client::DeviceManagerServiceClient;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::{Device, Property, say};

/// edgecore answers when a report is on its disk.
const CALL_WITHIN: Duration = Duration::from_secs(10);

/// Clones share one connection, which makes itself anew.
#[derive(Clone)]
pub(crate) struct Edge {
    client: DeviceManagerServiceClient<Channel>,
    /// edgecore was away: it may not know this mapper any more.
    away: Arc<AtomicBool>,
    /// Rung when it is back.
    pub(crate) back: Arc<Notify>,
}

impl Edge {
    pub(crate) fn new(socket: &Path) -> anyhow::Result<Self> {
        let socket: Arc<PathBuf> = Arc::new(socket.to_owned());
        let endpoint = Endpoint::try_from("http://[::]")?.timeout(CALL_WITHIN);
        let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let socket = Arc::clone(&socket);
            async move {
                let stream = UnixStream::connect(&*socket).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        }));
        Ok(Self {
            client: DeviceManagerServiceClient::new(channel),
            away: Arc::default(),
            back: Arc::default(),
        })
    }

    pub(crate) async fn register(
        &self,
        mapper: pb::MapperInfo,
    ) -> Result<pb::MapperRegisterResponse, Status> {
        let request = pb::MapperRegisterRequest {
            with_data: true,
            mapper: Some(mapper),
        };
        let answer = self.client.clone().mapper_register(request).await?;
        self.away.store(false, Ordering::Relaxed);
        Ok(answer.into_inner())
    }

    /// Reports one value. A value that does not arrive is not kept: the next one is newer.
    pub(crate) async fn report(&self, device: &Device, property: &Property, value: String) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let millis = now.map(|now| now.as_millis()).unwrap_or_default();
        let metadata = BTreeMap::from([
            ("timestamp".to_owned(), millis.to_string()),
            ("type".to_owned(), property.kind.to_ascii_lowercase()),
        ]);
        let twin = pb::Twin {
            property_name: property.name.clone(),
            observed_desired: property.desired.clone().map(|value| pb::TwinProperty {
                value,
                metadata: metadata.clone(),
            }),
            reported: Some(pb::TwinProperty { value, metadata }),
        };
        let request = pb::ReportDeviceStatusRequest {
            device_name: device.name.clone(),
            device_namespace: device.namespace.clone(),
            reported_device: Some(pb::DeviceStatus {
                twins: vec![twin],
                ..pb::DeviceStatus::default()
            }),
        };
        let told = self.client.clone().report_device_status(request).await;
        self.note(device, told.map(|_| ()));
    }

    pub(crate) async fn report_state(&self, device: &Device, state: &str) {
        let request = pb::ReportDeviceStatesRequest {
            device_name: device.name.clone(),
            device_namespace: device.namespace.clone(),
            state: state.to_owned(),
        };
        let told = self.client.clone().report_device_states(request).await;
        self.note(device, told.map(|_| ()));
    }

    fn note(&self, device: &Device, told: Result<(), Status>) {
        match told {
            Ok(()) => {
                if self.away.swap(false, Ordering::Relaxed) {
                    self.back.notify_one();
                }
            }
            Err(status) => {
                if status.code() == tonic::Code::Unavailable {
                    self.away.store(true, Ordering::Relaxed);
                }
                let (namespace, name) = (&device.namespace, &device.name);
                say(&format!("{namespace}/{name}: {}", status.message()));
            }
        }
    }
}
