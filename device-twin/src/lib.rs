//! The device twin as a pure function: a device's state, an event and a time go in; the next
//! state and the effects come out. No files, no network, no clock, nothing of Outpost's own.
//!
//! A device has properties. Each has a *desired* value, set by the cloud or by a local program,
//! and a *reported* value, set by the device. [`apply`] decides what an [`Event`] does to a
//! [`Device`]; the caller stores [`Decision::next`] and only then performs the [`Effect`]s. A
//! failed write therefore needs no undo.
//!
//! The rules are those of KubeEdge's DeviceTwin (`edge/pkg/devicetwin/dtmanager/twin.go`), minus
//! its crashes; where this differs, the item says so.
//!
//! ```
//! use device_twin::{apply, Change, Device, DeviceId, Effect, Event};
//!
//! let device = Device::new(DeviceId::parse("default/t1").unwrap());
//! let report = Change { reported: Some("23".into()), kind: Some("int".into()), ..Change::default() };
//! let event = Event::Update {
//!     event_id: "e1".into(),
//!     changes: [("temp".to_string(), Some(report))].into(),
//! };
//! let decision = apply(&device, event, 1_700_000_000_000).unwrap();
//! assert!(matches!(decision.effects[0], Effect::Result { .. }));
//! assert_eq!(decision.next.properties["temp"].reported.as_ref().unwrap().value, "23");
//! ```
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod apply;
mod delta;
mod device;
mod effect;
mod error;
mod event;
mod membership;
mod sync;
mod twin;
mod value;
mod version;
mod wish;

pub use apply::{Decision, apply, apply_by, check, cut_reason};
pub use delta::{Delta, delta};
pub use device::{Attribute, Device, DeviceId};
pub use effect::{DocumentEntry, Effect};
pub use error::{Code, Rejected};
pub use event::Event;
pub use event::{Change, Conflict, Delivery, SyncChange, Wanted};
pub use membership::{MembershipEvent, MembershipPlan, plan};
pub use twin::{FromCloud, Property, Refusal, Stamped, SyncState};
pub use value::{Kind, ValueRule};
pub use version::Version;
