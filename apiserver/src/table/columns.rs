//! The columns served per kind, as recorded, and which function fills them.

use super::{Cells, cells, network, pods, workloads};

/// `Name:type[/format][*priority]`, comma separated, and the cells.
pub(super) fn of(group: &str, plural: &str) -> (&'static str, Cells) {
    match (group, plural) {
        ("", "pods") => (
            "Name:string/name, Ready:string, Status:string, Restarts:string, Age:string, IP:string*1, Node:string*1, Nominated Node:string*1, Readiness Gates:string*1",
            pods::pod,
        ),
        ("", "nodes") => (
            "Name:string/name, Status:string, Roles:string, Age:string, Version:string, Internal-IP:string*1, External-IP:string*1, OS-Image:string*1, Kernel-Version:string*1, Container-Runtime:string*1",
            cells::node,
        ),
        ("", "namespaces") => (
            "Name:string/name, Status:string, Age:string",
            cells::namespace,
        ),
        ("", "configmaps") => (
            "Name:string/name, Data:string, Age:string",
            cells::config_map,
        ),
        ("", "secrets") => (
            "Name:string/name, Type:string, Data:string, Age:string",
            cells::secret,
        ),
        ("", "serviceaccounts") => ("Name:string/name, Age:string", cells::name_age),
        ("", "services") => (
            "Name:string/name, Type:string, Cluster-IP:string, External-IP:string, Port(s):string, Age:string, Selector:string*1",
            network::service,
        ),
        ("", "endpoints") => (
            "Name:string/name, Endpoints:string, Age:string",
            network::endpoints,
        ),
        ("discovery.k8s.io", "endpointslices") => (
            "Name:string/name, AddressType:string, Ports:string, Endpoints:string, Age:string",
            network::endpoint_slice,
        ),
        ("" | "events.k8s.io", "events") => (
            "Last Seen:string, Type:string, Reason:string, Object:string, Subobject:string*1, Source:string*1, Message:string, First Seen:string*1, Count:string*1, Name:string/name*1",
            cells::event,
        ),
        ("", "persistentvolumeclaims") => (
            "Name:string/name, Status:string, Volume:string, Capacity:string, Access Modes:string, StorageClass:string, VolumeAttributesClass:string, Age:string, VolumeMode:string*1",
            cells::claim,
        ),
        ("", "persistentvolumes") => (
            "Name:string/name, Capacity:string, Access Modes:string, Reclaim Policy:string, Status:string, Claim:string, StorageClass:string, VolumeAttributesClass:string, Reason:string, Age:string, VolumeMode:string*1",
            cells::volume,
        ),
        ("", "replicationcontrollers") | ("apps", "replicasets") => (
            "Name:string/name, Desired:integer, Current:integer, Ready:integer, Age:string, Containers:string*1, Images:string*1, Selector:string*1",
            workloads::replica_set,
        ),
        ("apps", "deployments") => (
            "Name:string/name, Ready:string, Up-to-date:string, Available:string, Age:string, Containers:string*1, Images:string*1, Selector:string*1",
            workloads::deployment,
        ),
        ("apps", "daemonsets") => (
            "Name:string/name, Desired:integer, Current:integer, Ready:integer, Up-to-date:integer, Available:integer, Node Selector:string, Age:string, Containers:string*1, Images:string*1, Selector:string*1",
            workloads::daemon_set,
        ),
        ("apps", "statefulsets") => (
            "Name:string/name, Ready:string, Age:string, Containers:string*1, Images:string*1",
            workloads::stateful_set,
        ),
        ("apps", "controllerrevisions") => (
            "Name:string/name, Controller:string, Revision:string, Age:string",
            workloads::revision,
        ),
        ("batch", "jobs") => (
            "Name:string/name, Status:string, Completions:string, Duration:string, Age:string, Containers:string*1, Images:string*1, Selector:string*1",
            workloads::job,
        ),
        ("batch", "cronjobs") => (
            "Name:string/name, Schedule:string, Timezone:string, Suspend:boolean, Active:integer, Last Schedule:string, Age:string, Containers:string*1, Images:string*1, Selector:string*1",
            workloads::cron_job,
        ),
        ("networking.k8s.io", "ingresses") => (
            "Name:string/name, Class:string, Hosts:string, Address:string, Ports:string, Age:string",
            network::ingress,
        ),
        ("networking.k8s.io", "networkpolicies") => (
            "Name:string/name, Pod-Selector:string, Age:string",
            network::policy,
        ),
        ("policy", "poddisruptionbudgets") => (
            "Name:string/name, Min Available:string, Max Unavailable:string, Allowed Disruptions:integer, Age:string",
            workloads::disruption_budget,
        ),
        ("coordination.k8s.io", "leases") => {
            ("Name:string/name, Holder:string, Age:string", cells::lease)
        }
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => (
            "Name:string/name, Role:string, Age:string, Users:string*1, Groups:string*1, ServiceAccounts:string*1",
            cells::role_binding,
        ),
        ("scheduling.k8s.io", "priorityclasses") => (
            "Name:string/name, Value:integer, Global-Default:boolean, Age:string, PreemptionPolicy:string",
            cells::priority_class,
        ),
        ("storage.k8s.io", "storageclasses") => (
            "Name:string/name, Provisioner:string, ReclaimPolicy:string, VolumeBindingMode:string, AllowVolumeExpansion:string, Age:string",
            cells::storage_class,
        ),
        ("node.k8s.io", "runtimeclasses") => (
            "Name:string/name, Handler:string, Age:string",
            cells::runtime_class,
        ),
        ("certificates.k8s.io", "certificatesigningrequests") => (
            "Name:string/name, Age:string, SignerName:string, Requestor:string, RequestedDuration:string, Condition:string",
            cells::signing_request,
        ),
        (
            "admissionregistration.k8s.io",
            "validatingwebhookconfigurations" | "mutatingwebhookconfigurations",
        ) => (
            "Name:string/name, Webhooks:integer, Age:string",
            cells::webhooks,
        ),
        _ => ("Name:string/name, Created At:date", cells::generic),
    }
}
