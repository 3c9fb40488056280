//! `DeviceManagerService`: what mappers call.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ::dmi::v1beta1 as pb;
use ::dmi::v1beta1::device_manager_service_server::DeviceManagerService;
use device_twin::Code;
use rusqlite::Connection;
use tokio::sync::Notify;
use tonic::{Request, Response, Status};
use wire::topic::DeviceRef;

use super::News;
use super::limiter::Limiter;
use super::peer::Peer;
use super::plan::{self, Item, Parcel};
use super::report::{self, Taken};
use super::rows::{self, Mapper};
use super::state::Board;
use crate::bus;
use crate::clock;
use crate::store::{Store, StoreError};
use crate::twin::Outcome;

/// Longest name of a mapper or protocol: as names of Kubernetes objects.
const NAME_BYTES_MAX: usize = 253;
/// `sun_path` of a unix socket, with its end.
const SOCKET_BYTES_MAX: usize = 107;
/// Mappers remembered. A node has a handful.
pub(super) const MAPPERS_MAX: usize = 64;
/// Properties in one report.
const TWINS_MAX: usize = 1024;

pub(super) struct Service {
    pub store: Store,
    pub news: News,
    pub limiter: Limiter,
    /// Rung when a mapper has registered.
    pub registered: Arc<Notify>,
    pub board: Board,
}

#[tonic::async_trait]
impl DeviceManagerService for Service {
    async fn mapper_register(
        &self,
        request: Request<pb::MapperRegisterRequest>,
    ) -> Result<Response<pb::MapperRegisterResponse>, Status> {
        let peer = peer(&request)?;
        let request = request.into_inner();
        let info = request.mapper.unwrap_or_default();
        self.admit(peer, "register mapper", &info.name)?;
        let mapper = mapper(info, peer)?;
        let taken = self.board.is_reachable(&mapper.name);
        let named = mapper.clone();
        let with_data = request.with_data;
        let done = self
            .store
            .write(move |tx| register(tx, mapper, peer, taken, with_data))
            .await
            .map_err(|error| of_store(&error))?;
        let answer = done.map_err(Status::permission_denied)?;
        let told = answer.device_list.iter().map(|device| Item {
            is_device: true,
            namespace: device.namespace.clone(),
            name: device.name.clone(),
        });
        let told: Vec<Item> = told.collect();
        let noted = self.news.note(move |tx, now| {
            let mut outcome = Outcome::default();
            for item in told {
                outcome.append(plan::taken(tx, &item, now)?);
            }
            Ok(outcome)
        });
        noted.await;
        tracing::info!(
            mapper = named.name,
            protocol = named.protocol,
            socket = named.address,
            devices = answer.device_list.len(),
            "mapper registered"
        );
        self.registered.notify_one();
        Ok(Response::new(answer))
    }

    async fn report_device_status(
        &self,
        request: Request<pb::ReportDeviceStatusRequest>,
    ) -> Result<Response<pb::ReportDeviceStatusResponse>, Status> {
        let peer = peer(&request)?;
        let request = request.into_inner();
        self.admit(peer, "report device status", &request.device_name)?;
        let twins = request.reported_device.map(|status| status.twins);
        let twins = twins.filter(|twins| !twins.is_empty()).ok_or_else(|| {
            Status::invalid_argument("ReportDeviceStatusRequest does not have twin data")
        })?;
        if twins.len() > TWINS_MAX {
            let reason = format!("more than {TWINS_MAX} properties in one report");
            return Err(Status::invalid_argument(reason));
        }
        let device = device(&request.device_namespace, &request.device_name)?;
        self.take(peer, device, move |tx, device, now| {
            report::status(tx, device, twins, now)
        })
        .await?;
        Ok(Response::new(pb::ReportDeviceStatusResponse {}))
    }

    async fn report_device_states(
        &self,
        request: Request<pb::ReportDeviceStatesRequest>,
    ) -> Result<Response<pb::ReportDeviceStatesResponse>, Status> {
        let peer = peer(&request)?;
        let request = request.into_inner();
        self.admit(peer, "report device states", &request.device_name)?;
        if request.state.is_empty() || request.device_name.is_empty() {
            return Err(Status::invalid_argument(
                "ReportDeviceStatesRequest is invalid data",
            ));
        }
        let device = device(&request.device_namespace, &request.device_name)?;
        self.take(peer, device, move |tx, device, now| {
            report::state(tx, device, &request.state, now)
        })
        .await?;
        Ok(Response::new(pb::ReportDeviceStatesResponse {}))
    }
}

impl Service {
    /// One call of the mapper's budget. The words are KubeEdge's
    /// (`edge/pkg/devicetwin/dmiserver/server.go`).
    fn admit(&self, peer: Peer, what: &str, whom: &str) -> Result<(), Status> {
        if self.limiter.allow(peer, clock::monotonic()) {
            return Ok(());
        }
        let reason = format!("fail to {what} because of too many request: {whom}");
        Err(Status::resource_exhausted(reason))
    }

    /// Runs a report in one transaction; the reply stands for the commit.
    async fn take<F>(&self, peer: Peer, device: DeviceRef, work: F) -> Result<(), Status>
    where
        F: FnOnce(&Connection, &DeviceRef, i64) -> Result<Taken, StoreError> + Send + 'static,
    {
        let done = self
            .store
            .write(move |tx| {
                if let Err(reason) = may_report(tx, peer, &device)? {
                    return Ok(Err(reason));
                }
                work(tx, &device, clock::unix_millis()).map(Ok)
            })
            .await
            .inspect_err(|error| bus::count_refused(&self.store, error))
            .map_err(|error| of_store(&error))?;
        let (outcome, refusal) = done.map_err(Status::permission_denied)?;
        self.news.tell(outcome);
        match refusal {
            None => Ok(()),
            Some(refused) => Err(match refused.code {
                Code::NotFound => Status::not_found(refused.reason),
                Code::BadRequest => Status::invalid_argument(refused.reason),
            }),
        }
    }
}

/// Stores the registration and makes the answer, in one transaction: what the mapper is noted to
/// know is what it is told.
fn register(
    tx: &Connection,
    mut mapper: Mapper,
    peer: Peer,
    is_reachable: bool,
    with_data: bool,
) -> Result<Result<pb::MapperRegisterResponse, String>, StoreError> {
    let known = rows::all(tx)?;
    let before = known.iter().find(|one| one.name == mapper.name);
    if before.is_some_and(|before| before.uid != peer.uid && is_reachable && !peer.is_trusted()) {
        let reason = format!("mapper {} runs as another user", mapper.name);
        return Ok(Err(reason));
    }
    if before.is_none() && known.len() >= MAPPERS_MAX {
        // The registrations are in order: the first is the one that is longest ago.
        if let Some(oldest) = known.first() {
            tracing::warn!(
                mapper = oldest.name,
                "too many mappers; the oldest is forgotten"
            );
            rows::remove(tx, &oldest.name)?;
        }
    }
    mapper.number = rows::put(tx, &mapper)?;
    let mut answer = pb::MapperRegisterResponse::default();
    let mut told = BTreeMap::new();
    if with_data {
        let mappers = rows::all(tx)?;
        let owed = plan::owed(tx, &mappers)?.remove(&mapper.name);
        for item in owed.unwrap_or_default().items.into_keys() {
            match plan::parcel(tx, &item)? {
                Some((Parcel::Model(model), print)) => {
                    answer.model_list.push(model);
                    told.insert(item, print);
                }
                Some((Parcel::Device(device), print)) if has_model(&device) => {
                    answer.device_list.push(device);
                    told.insert(item, print);
                }
                // The stock framework takes no answer with a device without a model: it is
                // offered such a one by itself.
                Some((Parcel::Device(_), _)) | None => {}
            }
        }
    }
    rows::set_told(tx, &mapper.name, &told)?;
    Ok(Ok(answer))
}

fn has_model(device: &pb::Device) -> bool {
    let spec = device.spec.as_ref();
    spec.is_some_and(|spec| !spec.device_model_reference.is_empty())
}

/// Whoever is not root reports only for devices of mappers that it registered itself.
fn may_report(
    tx: &Connection,
    peer: Peer,
    device: &DeviceRef,
) -> Result<Result<(), String>, StoreError> {
    if peer.is_trusted() {
        return Ok(Ok(()));
    }
    let kind = wire::resource::Kind::Device;
    let Some(object) = plan::stored(tx, &kind, &device.namespace, &device.name)? else {
        return Ok(Ok(()));
    };
    let mappers = rows::all(tx)?;
    let is_own = plan::owner(&object, &mappers).is_some_and(|mapper| mapper.uid == peer.uid);
    Ok(if is_own {
        Ok(())
    } else {
        Err(format!("device {device} is served by another mapper"))
    })
}

fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    let peer = request.extensions().get::<Peer>().copied();
    peer.ok_or_else(|| Status::unauthenticated("the peer is not known"))
}

pub(super) fn mapper(info: pb::MapperInfo, peer: Peer) -> Result<Mapper, Status> {
    let invalid = |reason: &str| Err(Status::invalid_argument(reason));
    if info.protocol.is_empty() {
        return invalid("fail to register mapper because the protocol is nil");
    }
    let too_long = |text: &String| text.len() > NAME_BYTES_MAX;
    if [&info.name, &info.protocol, &info.version, &info.api_version]
        .into_iter()
        .any(too_long)
    {
        return invalid("a name of the mapper is too long");
    }
    let Ok(address) = String::from_utf8(info.address) else {
        return invalid("the mapper's address is not UTF-8");
    };
    let path = address.trim_start_matches("unix://");
    let is_usable = Path::new(path).is_absolute() && !path.contains('\0');
    if !path.is_empty() && (!is_usable || path.len() > SOCKET_BYTES_MAX) {
        return invalid("the mapper's address is not the absolute path of a socket");
    }
    let name = if info.name.is_empty() {
        info.protocol.clone()
    } else {
        info.name
    };
    Ok(Mapper {
        name,
        protocol: info.protocol,
        address: path.to_owned(),
        version: info.version,
        api_version: info.api_version,
        uid: peer.uid,
        number: 0,
        registered_ms: clock::unix_millis(),
    })
}

/// The device that is meant; without a namespace it is in `default`.
fn device(namespace: &str, name: &str) -> Result<DeviceRef, Status> {
    let namespace = if namespace.is_empty() {
        "default"
    } else {
        namespace
    };
    DeviceRef::new(namespace, name)
        .ok_or_else(|| Status::invalid_argument("the device has no usable name"))
}

fn of_store(error: &StoreError) -> Status {
    match error {
        StoreError::Full => Status::resource_exhausted("the node's disk is full"),
        StoreError::Quota { stream } => {
            let reason = format!("the ledger has no room left for {stream}; report it again");
            Status::resource_exhausted(reason)
        }
        StoreError::Refused(reason) => Status::failed_precondition(reason.clone()),
        StoreError::Open { .. }
        | StoreError::Corrupt { .. }
        | StoreError::TooNew { .. }
        | StoreError::Sql(_)
        | StoreError::Busy
        | StoreError::Stopped => Status::unavailable(error.to_string()),
    }
}

/// Used by the worker too.
pub(super) fn item_name(item: &Item) -> String {
    format!("{}/{}", item.namespace, item.name)
}
