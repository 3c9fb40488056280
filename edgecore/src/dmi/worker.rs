//! One task a mapper: makes what it was told agree with what it is owed. KubeEdge calls once and
//! forgets; here a call that failed is made again, with pauses that grow, until it succeeded or is
//! not owed any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::dmi::v1beta1 as pb;
use ::dmi::v1beta1::device_mapper_service_client::DeviceMapperServiceClient;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::News;
use super::peer::Admission;
use super::plan::{self, Item, Owed, Parcel, Print};
use super::rows::{self, Mapper};
use super::server::item_name;
use super::state::{Board, MapperSummary};
use crate::clock;
use crate::store::{Store, StoreError};
use crate::twin::{self, Outcome};

/// Pauses between attempts.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub first: Duration,
    /// For a mapper that does not answer.
    pub unreachable_max: Duration,
    /// For one item that it refuses.
    pub refused_max: Duration,
    /// One call; KubeEdge's deadline.
    pub call: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(500),
            unreachable_max: Duration::from_secs(30),
            refused_max: Duration::from_secs(300),
            call: Duration::from_secs(10),
        }
    }
}

/// Notes are written at least this often in a long round.
const NOTES_MAX: usize = 64;
/// A mapper's answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What a worker goes by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Assignment {
    pub mapper: Mapper,
    pub owed: Owed,
}

pub(super) struct Worker {
    pub store: Store,
    pub news: News,
    pub admission: Arc<Admission>,
    pub board: Board,
    pub pace: Pace,
    pub input: watch::Receiver<Arc<Assignment>>,
    pub stop: CancellationToken,
}

/// Attempts at one thing.
#[derive(Clone, Debug, Default)]
struct Tries {
    failed: u32,
    again: Option<Instant>,
    reason: String,
    /// What was refused; another print is another thing.
    print: Option<Print>,
}

impl Tries {
    fn fail(&mut self, reason: String, first: Duration, max: Duration, now: Instant) {
        let pause = first.saturating_mul(1 << self.failed.min(16)).min(max);
        // Up to a quarter less, so that mappers that died together are not called together.
        let pause = pause.mul_f64(1.0 - rand::random_range(0.0..0.25));
        self.failed = self.failed.saturating_add(1);
        self.again = Some(now + pause);
        self.reason = reason;
    }

    fn is_due(&self, now: Instant) -> bool {
        self.again.is_none_or(|again| again <= now)
    }
}

/// What a worker remembers.
#[derive(Debug, Default)]
struct Memory {
    /// Of which registration this is.
    number: i64,
    told: BTreeMap<Item, Print>,
    unreachable: Tries,
    refused: BTreeMap<Item, Tries>,
    reachable: Option<bool>,
    notes: Vec<(Item, Option<Print>)>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Put { item: Item, is_new: bool },
    Forget { item: Item },
}

impl Step {
    fn item(&self) -> &Item {
        match self {
            Self::Put { item, .. } | Self::Forget { item } => item,
        }
    }
}

/// Why a call failed.
enum Failure {
    /// The mapper is not there, or does not answer.
    Unreachable(String),
    /// It answered no.
    Refused(String),
}

impl Worker {
    pub(super) async fn run(mut self) {
        let mut memory = Memory::default();
        loop {
            let assignment = Arc::clone(&self.input.borrow_and_update());
            let again = match self.round(&assignment, &mut memory).await {
                Ok(again) => again,
                Err(error) => {
                    tracing::warn!(mapper = assignment.mapper.name, %error, "mapper's items cannot be read");
                    Some(clock::monotonic() + self.pace.unreachable_max)
                }
            };
            self.tell(&assignment, &memory);
            let pause = clock::reached(again);
            // Cancel-safe: a token, a watch, a timer.
            tokio::select! {
                () = self.stop.cancelled() => return,
                changed = self.input.changed() => if changed.is_err() { return },
                () = pause => {}
            }
        }
    }

    /// Does what is due; when to come back, if something is left.
    async fn round(
        &self,
        assignment: &Assignment,
        memory: &mut Memory,
    ) -> Result<Option<Instant>, StoreError> {
        let mapper = &assignment.mapper;
        if memory.number != mapper.number {
            let name = mapper.name.clone();
            *memory = Memory {
                number: mapper.number,
                told: self.store.read(move |tx| rows::told(tx, &name)).await?,
                ..Memory::default()
            };
        }
        memory.refused.retain(|item, tries| {
            let owed = assignment.owed.items.get(item);
            owed.copied() == tries.print && (owed.is_some() || memory.told.contains_key(item))
        });
        let steps = steps(&assignment.owed.items, &memory.told);
        if steps.is_empty() {
            memory.unreachable = Tries::default();
            return Ok(None);
        }
        if mapper.address.is_empty() {
            "it named no socket".clone_into(&mut memory.unreachable.reason);
            return Ok(None);
        }
        let now = clock::monotonic();
        if !memory.unreachable.is_due(now) {
            return Ok(memory.unreachable.again);
        }
        let is_due = |step: &Step| {
            let refused = memory.refused.get(step.item());
            refused.is_none_or(|tries| tries.is_due(now))
        };
        let due: Vec<Step> = steps.into_iter().filter(is_due).collect();
        if !due.is_empty() {
            let done = self.make_calls(assignment, memory, due).await;
            self.write_notes(mapper, memory).await?;
            done?;
        }
        let refused = memory.refused.values().filter_map(|tries| tries.again);
        Ok(refused.chain(memory.unreachable.again).min())
    }

    async fn make_calls(
        &self,
        assignment: &Assignment,
        memory: &mut Memory,
        due: Vec<Step>,
    ) -> Result<(), StoreError> {
        let mapper = &assignment.mapper;
        let mut client = match self.connect(mapper).await {
            Ok(client) => client,
            Err(reason) => {
                self.unreachable(mapper, memory, reason);
                return Ok(());
            }
        };
        for step in due {
            let is_stale = self.input.has_changed().unwrap_or(true);
            if is_stale || self.stop.is_cancelled() {
                return Ok(());
            }
            let item = step.item().clone();
            if !assignment.owed.has_its_model(&item, &memory.told) {
                continue;
            }
            let (sent, answer) = self.call(&mut client, &step).await?;
            match answer {
                Ok(()) => {
                    memory.reachable = Some(true);
                    memory.unreachable = Tries::default();
                    memory.refused.remove(&item);
                    match sent {
                        Some(print) => memory.told.insert(item.clone(), print),
                        None => memory.told.remove(&item),
                    };
                    memory.notes.push((item, sent));
                    if memory.notes.len() >= NOTES_MAX {
                        self.write_notes(mapper, memory).await?;
                    }
                }
                Err(Failure::Unreachable(reason)) => {
                    if let Some(sent) = sent.filter(|_| !memory.told.contains_key(&item)) {
                        // It may know the item all the same. A stock mapper takes a second
                        // registration of a device for the first one: it gets an update.
                        memory.told.insert(item.clone(), !sent);
                        memory.notes.push((item, Some(!sent)));
                    }
                    self.unreachable(mapper, memory, reason);
                    return Ok(());
                }
                Err(Failure::Refused(reason)) => {
                    memory.reachable = Some(true);
                    memory.unreachable = Tries::default();
                    if let Some(sent) = sent.filter(|_| item.is_device) {
                        self.tell_refusal(mapper, &item, sent, &reason).await;
                    }
                    let tries = memory.refused.entry(item.clone()).or_default();
                    tries.print = assignment.owed.items.get(&item).copied();
                    if tries.failed.is_power_of_two() || tries.failed == 0 {
                        tracing::warn!(
                            mapper = mapper.name,
                            item = item_name(&item),
                            is_device = item.is_device,
                            reason,
                            "mapper refused; it is asked again"
                        );
                    }
                    let pace = self.pace;
                    tries.fail(reason, pace.first, pace.refused_max, clock::monotonic());
                }
            }
        }
        Ok(())
    }

    /// Whoever desires something of the device learns why it does not come. Something else that is
    /// desired since was not refused.
    async fn tell_refusal(&self, mapper: &Mapper, item: &Item, sent: Print, reason: &str) {
        let (mapper, item, reason) = (mapper.clone(), item.clone(), reason.to_owned());
        let noted = self.news.note(move |tx, now| {
            if !plan::is_owed(tx, &mapper, &item, sent)? {
                return Ok(Outcome::default());
            }
            twin::mapper_refused(tx, &item.namespace, &item.name, &reason, now)
        });
        noted.await;
    }

    /// What the mapper refused before and took now is on its way again.
    async fn tell_taken(&self, mapper: &Mapper, notes: Vec<(Item, Option<Print>)>) {
        let taken = notes.into_iter().filter_map(|(item, print)| {
            let print = print.filter(|_| item.is_device)?;
            Some((item, print))
        });
        let taken: Vec<_> = taken.collect();
        if taken.is_empty() {
            return;
        }
        let mapper = mapper.clone();
        let noted = self.news.note(move |tx, now| {
            let mut told = Outcome::default();
            for (item, sent) in taken {
                if plan::is_owed(tx, &mapper, &item, sent)? {
                    told.append(plan::taken(tx, &item, now)?);
                }
            }
            Ok(told)
        });
        noted.await;
    }

    fn unreachable(&self, mapper: &Mapper, memory: &mut Memory, reason: String) {
        let tries = &mut memory.unreachable;
        if tries.failed == 0 {
            tracing::warn!(
                mapper = mapper.name,
                socket = mapper.address,
                reason,
                "mapper does not answer; it is tried again"
            );
        }
        let pace = self.pace;
        tries.fail(reason, pace.first, pace.unreachable_max, clock::monotonic());
        memory.reachable = Some(false);
    }

    async fn write_notes(&self, mapper: &Mapper, memory: &mut Memory) -> Result<(), StoreError> {
        if memory.notes.is_empty() {
            return Ok(());
        }
        let notes = std::mem::take(&mut memory.notes);
        let (name, number, noted) = (mapper.name.clone(), mapper.number, notes.clone());
        let is_current = self.store.write(move |tx| {
            match rows::all(tx)?.iter().find(|one| one.name == name) {
                Some(current) if current.number == number => {
                    rows::note(tx, &name, &noted).map(|()| true)
                }
                // The mapper registered while it was being told: which came first there, the
                // answer or the call, nobody knows. It is told again.
                Some(_) => rows::doubt(tx, &name, &noted).map(|()| false),
                None => Ok(false),
            }
        });
        if is_current.await? {
            self.tell_taken(mapper, notes).await;
        }
        Ok(())
    }

    async fn connect(&self, mapper: &Mapper) -> Result<DeviceMapperServiceClient<Channel>, String> {
        let endpoint = Endpoint::try_from("http://[::]").map_err(|error| error.to_string())?;
        let connecting = UnixStream::connect(&mapper.address);
        let stream = tokio::time::timeout(self.pace.call, connecting)
            .await
            .map_err(|_| "it does not accept".to_owned())?
            .map_err(|error| error.to_string())?;
        let Some(peer) = self.admission.admit(&stream) else {
            return Err("somebody who is no admitted mapper listens on its socket".to_owned());
        };
        if peer.uid != mapper.uid && !peer.is_trusted() {
            return Err("another user listens on its socket".to_owned());
        }
        let mut stream = Some(stream);
        let connector = tower::service_fn(move |_| {
            let stream = stream.take();
            async move {
                stream
                    .map(hyper_util::rt::TokioIo::new)
                    .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected))
            }
        });
        let channel = endpoint
            .timeout(self.pace.call)
            .connect_with_connector(connector)
            .await
            .map_err(|error| error.to_string())?;
        Ok(DeviceMapperServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    /// One call: what was sent, nothing if the mapper was to forget, and how it went.
    async fn call(
        &self,
        client: &mut DeviceMapperServiceClient<Channel>,
        step: &Step,
    ) -> Result<(Option<Print>, Result<(), Failure>), StoreError> {
        let item = step.item().clone();
        let (sent, told) = match step {
            Step::Put { is_new, .. } => {
                let wanted = item.clone();
                let found = self.store.read(move |tx| plan::parcel(tx, &wanted)).await?;
                let Some((parcel, print)) = found else {
                    // Gone since the plan was made; the next one knows.
                    return Ok((None, Err(Failure::Refused("it is gone".to_owned()))));
                };
                (Some(print), put(client, parcel, *is_new).await)
            }
            Step::Forget { .. } => (None, forget(client, item).await),
        };
        Ok((sent, told.map_err(|status| failure(&status))))
    }

    fn tell(&self, assignment: &Assignment, memory: &Memory) {
        let Assignment { mapper, owed } = assignment;
        let pending = steps(&owed.items, &memory.told).len() + owed.waiting;
        let reason = if pending == 0 {
            String::new()
        } else if !memory.unreachable.reason.is_empty() {
            memory.unreachable.reason.clone()
        } else if let Some((item, tries)) = memory.refused.iter().next() {
            format!("{}: {}", item_name(item), tries.reason)
        } else if owed.waiting > 0 {
            format!("{} devices wait for their model", owed.waiting)
        } else {
            String::new()
        };
        self.board.set(MapperSummary {
            name: mapper.name.clone(),
            protocol: mapper.protocol.clone(),
            socket: mapper.address.clone(),
            reachable: memory.reachable,
            devices: owed.items.keys().filter(|item| item.is_device).count(),
            pending,
            reason,
        });
    }
}

/// What makes `told` into `owed`: devices that left, then models and devices that are new or
/// changed, then models that nobody needs.
fn steps(owed: &BTreeMap<Item, Print>, told: &BTreeMap<Item, Print>) -> Vec<Step> {
    let left = |is_device: bool| {
        told.keys()
            .filter(move |item| item.is_device == is_device && !owed.contains_key(*item))
            .map(|item| Step::Forget { item: item.clone() })
    };
    let put = owed
        .iter()
        .filter(|(item, print)| told.get(*item) != Some(*print))
        .map(|(item, _)| Step::Put {
            item: item.clone(),
            is_new: !told.contains_key(item),
        });
    left(true).chain(put).chain(left(false)).collect()
}

/// A mapper that does not know what it should change is told of it as of something new.
async fn put(
    client: &mut DeviceMapperServiceClient<Channel>,
    parcel: Parcel,
    is_new: bool,
) -> Result<(), Status> {
    if is_new {
        return create(client, parcel).await;
    }
    let told = match parcel.clone() {
        Parcel::Device(device) => {
            let device = Some(device);
            let request = pb::UpdateDeviceRequest { device };
            client.update_device(request).await.map(|_| ())
        }
        Parcel::Model(model) => {
            let model = Some(model);
            let request = pb::UpdateDeviceModelRequest { model };
            client.update_device_model(request).await.map(|_| ())
        }
    };
    match told {
        Err(status) if is_unknown_there(&status) => create(client, parcel).await,
        told => told,
    }
}

async fn create(
    client: &mut DeviceMapperServiceClient<Channel>,
    parcel: Parcel,
) -> Result<(), Status> {
    match parcel {
        Parcel::Device(device) => {
            let device = Some(device);
            let request = pb::RegisterDeviceRequest { device };
            client.register_device(request).await.map(|_| ())
        }
        Parcel::Model(model) => {
            let model = Some(model);
            let request = pb::CreateDeviceModelRequest { model };
            client.create_device_model(request).await.map(|_| ())
        }
    }
}

/// A mapper that does not know what it should forget has forgotten it.
async fn forget(client: &mut DeviceMapperServiceClient<Channel>, item: Item) -> Result<(), Status> {
    let told = if item.is_device {
        let request = pb::RemoveDeviceRequest {
            device_name: item.name,
            device_namespace: item.namespace,
        };
        client.remove_device(request).await.map(|_| ())
    } else {
        let request = pb::RemoveDeviceModelRequest {
            model_name: item.name,
            model_namespace: item.namespace,
        };
        client.remove_device_model(request).await.map(|_| ())
    };
    match told {
        Err(status) if is_unknown_there(&status) => Ok(()),
        told => told,
    }
}

/// The stock framework answers with a plain error that says so.
fn is_unknown_there(status: &Status) -> bool {
    let text = status.message().to_ascii_lowercase();
    status.code() == Code::NotFound
        || ["not found", "not exist", "can not find"]
            .iter()
            .any(|words| text.contains(words))
}

/// Which kind of failure a status is: the ones that the transport makes mean that nobody answered.
fn failure(status: &Status) -> Failure {
    let reason = match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    };
    let is_transport = matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
    ) || std::error::Error::source(status).is_some();
    if is_transport {
        Failure::Unreachable(reason)
    } else {
        Failure::Refused(reason)
    }
}
