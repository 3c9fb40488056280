//! Rows of services and what belongs to them.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cells::{NONE, UNSET, created, labels, list, name, or, text};
use super::workloads::selector;

pub(super) fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let strings = |value: &Value| {
        list(value)
            .iter()
            .map(|v| text(v).to_owned())
            .collect::<Vec<_>>()
    };
    let external = strings(&spec["externalIPs"]);
    let external = match text(&spec["type"]) {
        "LoadBalancer" => {
            let mut all: Vec<String> = list(&object["status"]["loadBalancer"]["ingress"])
                .iter()
                .map(|i| or(&i["ip"], text(&i["hostname"])).to_owned())
                .collect();
            all.extend(external);
            if all.is_empty() {
                "<pending>".to_owned()
            } else {
                all.join(",")
            }
        }
        "ExternalName" => text(&spec["externalName"]).to_owned(),
        _ if external.is_empty() => NONE.to_owned(),
        _ => external.join(","),
    };
    let ports = list(&spec["ports"]).iter().map(|p| {
        let node = match p["nodePort"].as_i64() {
            Some(n) if n > 0 => format!(":{n}"),
            _ => String::new(),
        };
        format!("{}{node}/{}", p["port"], text(&p["protocol"]))
    });
    let ports = ports.collect::<Vec<_>>().join(",");
    let first = list(&spec["clusterIPs"])
        .first()
        .unwrap_or(&spec["clusterIP"]);
    vec![
        name(object),
        json!(text(&spec["type"])),
        json!(or(first, NONE)),
        json!(external),
        json!(if ports.is_empty() {
            NONE.to_owned()
        } else {
            ports
        }),
        created(object, now),
        json!(labels(&spec["selector"])),
    ]
}

/// The first three, and how many more.
fn few(all: &[String], nothing: &str) -> String {
    if all.is_empty() {
        return nothing.to_owned();
    }
    let shown = all
        .iter()
        .take(3)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(",");
    if all.len() > 3 {
        format!("{shown} + {} more...", all.len() - 3)
    } else {
        shown
    }
}

pub(super) fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in list(&object["subsets"]) {
        let ports = list(&subset["ports"]);
        for address in list(&subset["addresses"]) {
            let ip = text(&address["ip"]);
            let v6 = ip.contains(':');
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            all.extend(ports.iter().map(|p| {
                if v6 {
                    format!("[{ip}]:{}", p["port"])
                } else {
                    format!("{ip}:{}", p["port"])
                }
            }));
        }
    }
    vec![name(object), json!(few(&all, NONE)), created(object, now)]
}

pub(super) fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = list(&object["ports"])
        .iter()
        .map(|p| {
            p["port"]
                .as_i64()
                .map_or_else(|| "*".to_owned(), |n| n.to_string())
        })
        .collect();
    let addresses: Vec<String> = list(&object["endpoints"])
        .iter()
        .flat_map(|e| list(&e["addresses"]))
        .map(|a| text(a).to_owned())
        .collect();
    vec![
        name(object),
        json!(text(&object["addressType"])),
        json!(few(&ports, UNSET)),
        json!(few(&addresses, UNSET)),
        created(object, now),
    ]
}

pub(super) fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let hosts: Vec<String> = list(&spec["rules"])
        .iter()
        .map(|r| text(&r["host"]).to_owned())
        .filter(|h| !h.is_empty())
        .collect();
    let addresses: Vec<&str> = list(&object["status"]["loadBalancer"]["ingress"])
        .iter()
        .map(|i| or(&i["ip"], text(&i["hostname"])))
        .collect();
    vec![
        name(object),
        json!(or(&spec["ingressClassName"], NONE)),
        json!(few(&hosts, "*")),
        json!(addresses.join(",")),
        json!(if list(&spec["tls"]).is_empty() {
            "80"
        } else {
            "80, 443"
        }),
        created(object, now),
    ]
}

pub(super) fn policy(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(selector(&object["spec"]["podSelector"])),
        created(object, now),
    ]
}
