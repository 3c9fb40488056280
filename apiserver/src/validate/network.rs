//! Services and endpoints.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON has six types, and will not get a seventh"
)]

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{FieldError, invalid, list, one_of, text};
use crate::names;

const IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

fn is_ip(value: &Value) -> bool {
    text(value).parse::<IpAddr>().is_ok()
}

pub(super) fn service(object: &Value, errors: &mut Vec<FieldError>) {
    let spec = &object["spec"];
    let kind = text(&spec["type"]);
    one_of(
        "spec.type".into(),
        &spec["type"],
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        errors,
    );
    one_of(
        "spec.sessionAffinity".into(),
        &spec["sessionAffinity"],
        &["ClientIP", "None"],
        errors,
    );
    let headless = text(&spec["clusterIP"]) == "None";
    if kind == "ExternalName" {
        match text(&spec["externalName"]) {
            "" => errors.push(FieldError::required("spec.externalName", "")),
            name => invalid(
                "spec.externalName",
                &spec["externalName"],
                names::dns_subdomain(name),
                errors,
            ),
        }
    } else if list(&spec["ports"]).is_empty() && !headless {
        errors.push(FieldError::required("spec.ports", ""));
    }
    let addresses: Vec<&Value> = match list(&spec["clusterIPs"]) {
        [] if text(&spec["clusterIP"]).is_empty() => Vec::new(),
        [] => vec![&spec["clusterIP"]],
        all => all.iter().collect(),
    };
    for (i, address) in addresses.into_iter().enumerate() {
        if !matches!(text(address), "" | "None") && !is_ip(address) {
            errors.push(FieldError::invalid(
                format!("spec.clusterIPs[{i}]"),
                address,
                IP,
            ));
        }
    }
    let ports = list(&spec["ports"]);
    let (mut names, mut used) = (Vec::new(), Vec::new());
    for (i, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        service_port(&path, port, kind, ports.len() > 1, errors);
        let name = text(&port["name"]);
        if !name.is_empty() && names.contains(&name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), &port["name"]));
        }
        names.push(name);
        let key = (&port["protocol"], &port["port"]);
        if used.contains(&key) {
            let value = json!({"Name": "", "Protocol": port["protocol"], "AppProtocol": null, "Port": port["port"], "TargetPort": 0, "NodePort": 0});
            errors.push(FieldError::duplicate(path, &value));
        }
        used.push(key);
    }
}

fn service_port(path: &str, port: &Value, kind: &str, several: bool, errors: &mut Vec<FieldError>) {
    match text(&port["name"]) {
        "" if several => errors.push(FieldError::required(format!("{path}.name"), "")),
        "" => {}
        name => invalid(
            &format!("{path}.name"),
            &port["name"],
            names::dns_label(name),
            errors,
        ),
    }
    if !(1..=65535).contains(&port["port"].as_i64().unwrap_or(0)) {
        errors.push(FieldError::invalid(
            format!("{path}.port"),
            &port["port"],
            PORT_RANGE,
        ));
    }
    one_of(
        format!("{path}.protocol"),
        &port["protocol"],
        &["SCTP", "TCP", "UDP"],
        errors,
    );
    match &port["targetPort"] {
        Value::String(name) => invalid(
            &format!("{path}.targetPort"),
            &port["targetPort"],
            names::port_name(name),
            errors,
        ),
        target if (1..=65535).contains(&target.as_i64().unwrap_or(0)) => {}
        target => errors.push(FieldError::invalid(
            format!("{path}.targetPort"),
            target,
            PORT_RANGE,
        )),
    }
    let node = port["nodePort"].as_i64().unwrap_or(0);
    if node == 0 {
        return;
    }
    if matches!(kind, "ClusterIP" | "ExternalName") {
        let why = format!("may not be used when `type` is '{kind}'");
        errors.push(FieldError::forbidden(format!("{path}.nodePort"), &why));
    } else if !(30000..=32767).contains(&node) {
        let why =
            "provided port is not in the valid range. The range of valid ports is 30000-32767";
        errors.push(FieldError::invalid(
            format!("{path}.nodePort"),
            &port["nodePort"],
            why,
        ));
    }
}

pub(super) fn endpoints(object: &Value, errors: &mut Vec<FieldError>) {
    for (i, subset) in list(&object["subsets"]).iter().enumerate() {
        for (j, address) in list(&subset["addresses"]).iter().enumerate() {
            if !is_ip(&address["ip"]) {
                let path = format!("subsets[{i}].addresses[{j}].ip");
                errors.push(FieldError::invalid(path.as_str(), &address["ip"], IP));
                errors.push(FieldError::invalid(
                    path,
                    &address["ip"],
                    "must be a valid IP address",
                ));
            }
        }
    }
}

pub(super) fn endpoint_slice(object: &Value, errors: &mut Vec<FieldError>) {
    let kind = text(&object["addressType"]);
    if kind.is_empty() {
        errors.push(FieldError::required("addressType", ""));
    } else {
        one_of(
            "addressType".into(),
            &object["addressType"],
            &["FQDN", "IPv4", "IPv6"],
            errors,
        );
    }
    for (i, endpoint) in list(&object["endpoints"]).iter().enumerate() {
        if list(&endpoint["addresses"]).is_empty() {
            errors.push(FieldError::required(
                format!("endpoints[{i}].addresses"),
                "must contain at least 1 address",
            ));
        }
        for (j, address) in list(&endpoint["addresses"]).iter().enumerate() {
            if matches!(kind, "IPv4" | "IPv6") && !is_ip(address) {
                errors.push(FieldError::invalid(
                    format!("endpoints[{i}].addresses[{j}]"),
                    address,
                    IP,
                ));
            }
        }
    }
}
