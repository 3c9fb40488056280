//! A device as drivers see it: the published messages without their corners.

use std::collections::BTreeMap;
use std::time::Duration;

use dmi::v1beta1 as pb;

/// Default and shortest cycle of reading.
const CYCLE: Duration = Duration::from_secs(1);
const CYCLE_MIN: Duration = Duration::from_millis(10);

/// Free-form configuration, each value as text.
pub type Settings = BTreeMap<String, String>;

/// A device, with its model's types.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    pub namespace: String,
    pub name: String,
    /// How to reach it: `spec.protocol.configData`.
    pub settings: Settings,
    pub properties: Vec<Property>,
}

/// A property of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Property {
    pub name: String,
    /// The model's type: `INT`, `FLOAT`, `STRING`, `BOOLEAN` …
    pub kind: String,
    pub writable: bool,
    pub desired: Option<String>,
    /// How to reach it: `visitors.configData`.
    pub settings: Settings,
    pub cycle: Duration,
    pub reported: bool,
}

impl Device {
    /// From the messages; what is missing is empty.
    pub fn new(device: &pb::Device, model: Option<&pb::DeviceModel>) -> Self {
        let spec = device.spec.clone().unwrap_or_default();
        let of_model = model.and_then(|model| model.spec.as_ref());
        let properties = spec.properties.iter().map(|property| {
            let typed = of_model.and_then(|spec| {
                let mut all = spec.properties.iter();
                all.find(|typed| typed.name == property.name)
            });
            let visitor = property.visitors.as_ref();
            Property {
                name: property.name.clone(),
                kind: typed.map_or_else(String::new, |typed| typed.r#type.clone()),
                writable: typed.is_some_and(|typed| typed.access_mode == "ReadWrite"),
                desired: property
                    .desired
                    .as_ref()
                    .map(|desired| desired.value.clone())
                    .filter(|value| !value.is_empty()),
                settings: settings(visitor.and_then(|visitor| visitor.config_data.as_ref())),
                cycle: u64::try_from(property.collect_cycle)
                    .ok()
                    .filter(|millis| *millis > 0)
                    .map_or(CYCLE, Duration::from_millis)
                    .max(CYCLE_MIN),
                reported: property.report_to_cloud,
            }
        });
        Self {
            namespace: device.namespace.clone(),
            name: device.name.clone(),
            properties: properties.collect(),
            settings: settings(spec.protocol.and_then(|p| p.config_data).as_ref()),
        }
    }
}

fn settings(given: Option<&pb::CustomizedValue>) -> Settings {
    given
        .into_iter()
        .flat_map(|given| &given.data)
        .filter_map(|(key, any)| Some((key.clone(), dmi::unpack(any)?.to_string())))
        .collect()
}
