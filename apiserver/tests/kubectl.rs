//! Real kubectl against the service on a socket. Which programs: `OUTPOST_KUBECTLS` (separated by
//! `:`), by default `kubectl` from the path and the one that `scripts/setup.sh` puts into
//! `target/tools`. Without any the tests say that they were skipped; with
//! `OUTPOST_REQUIRE_NEIGHBOURS=1` they fail.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use apiserver::authn::{AllowMasters, MASTERS, User};
use apiserver::http::Service;
use apiserver::store::SqliteStore;
use apiserver::{Api, Options};
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinSet;

const MANIFEST: &str = "
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: ConfigMap
  metadata: {name: settings}
  data: {a: first, b: '2'}
- apiVersion: v1
  kind: Pod
  metadata: {name: web, labels: {app: web}}
  spec:
    nodeName: edge-1
    containers:
    - name: c
      image: registry.example/web:1
      ports: [{containerPort: 80}]
      env: [{name: A, value: '1'}]
";

const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.ex.io}
spec:
  group: ex.io
  scope: Namespaced
  names: {plural: things, kind: Thing, shortNames: [th]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              size: {type: integer, minimum: 1, default: 3}
";

const THING: &str = "
apiVersion: ex.io/v1
kind: Thing
metadata: {name: t1}
spec: {size: 5}
";

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn programs() -> Vec<PathBuf> {
    let named = std::env::var("OUTPOST_KUBECTLS").unwrap_or_else(|_| {
        let tools = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../target/tools/kubernetes-client/usr/bin/kubectl"
        );
        format!("kubectl:{tools}")
    });
    let works = |program: &&str| {
        std::process::Command::new(program)
            .args(["version", "--client"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok()
    };
    let found: Vec<PathBuf> = named.split(':').filter(works).map(PathBuf::from).collect();
    if found.is_empty() {
        let required = std::env::var("OUTPOST_REQUIRE_NEIGHBOURS").is_ok_and(|v| v == "1");
        assert!(!required, "no kubectl found in `{named}`");
        eprintln!("SKIPPED: no kubectl found in `{named}`");
    }
    found
}

/// A server, and kubectls that talk to it. Everything ends with it.
struct Place {
    dir: tempfile::TempDir,
    address: SocketAddr,
    program: PathBuf,
    _tasks: JoinSet<()>,
}

struct Ran {
    ok: bool,
    out: String,
    err: String,
}

impl Place {
    async fn new(program: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("hub.db")).unwrap();
        let api = Api::open(Arc::new(store), Options::default())
            .await
            .unwrap();
        let service = Service::new(api.clone(), Arc::new(AllowMasters));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { api.run().await });
        tasks.spawn(serve(listener, service));
        Self {
            dir,
            address,
            program: program.to_owned(),
            _tasks: tasks,
        }
    }

    fn command(&self, args: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["--server", &format!("http://{}", self.address)])
            .args([
                "--cache-dir".as_ref(),
                self.dir.path().join("cache").as_os_str(),
            ])
            .args(args.split_whitespace())
            .env("HOME", self.dir.path())
            .env_remove("KUBECONFIG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, args: &str, stdin: &str) -> Ran {
        let mut child = self.command(args).spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        pipe.write_all(stdin.as_bytes()).await.unwrap();
        drop(pipe);
        let output = soon(child.wait_with_output()).await.unwrap();
        Ran {
            ok: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Must succeed and print this.
    async fn prints(&self, args: &str, stdin: &str, expected: &str) -> String {
        let ran = self.run(args, stdin).await;
        assert!(
            ran.ok && ran.out.contains(expected),
            "kubectl {args}\nexpected: {expected}\nstdout: {}\nstderr: {}",
            ran.out,
            ran.err
        );
        ran.out
    }

    /// Must fail and say this.
    async fn refuses(&self, args: &str, stdin: &str, expected: &str) {
        let ran = self.run(args, stdin).await;
        assert!(
            !ran.ok && ran.err.contains(expected),
            "kubectl {args}\nexpected: {expected}\nstdout: {}\nstderr: {}",
            ran.out,
            ran.err
        );
    }

    fn follow(&self, args: &str) -> (Child, Lines<BufReader<ChildStdout>>) {
        let mut child = self.command(args).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines)
    }
}

async fn serve(listener: TcpListener, service: Service) {
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let service = service.clone();
        connections.spawn(async move {
            let answer = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(User {
                    name: "admin".into(),
                    groups: vec![MASTERS.into()],
                    uid: String::new(),
                });
                hyper::service::Service::call(&service, request)
            });
            // A client that goes away is no failure.
            drop(
                Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(socket), answer)
                    .await,
            );
        });
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(std::time::Duration::from_secs(50), what)
        .await
        .expect("kubectl does not come back")
}

async fn line_with(lines: &mut Lines<BufReader<ChildStdout>>, text: &str) {
    loop {
        let line = soon(lines.next_line()).await.unwrap();
        let line = line.unwrap_or_else(|| panic!("kubectl ended before printing `{text}`"));
        if line.contains(text) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_applied_shown_changed_and_deleted() {
    for program in programs() {
        let k = Place::new(&program).await;
        k.prints("version", "", "+outpost").await;
        k.prints("api-resources", "", "customresourcedefinitions")
            .await;
        k.prints("get namespaces", "", "kube-system").await;
        k.prints("apply -f -", MANIFEST, "pod/web created").await;
        k.prints("apply -f -", MANIFEST, "pod/web unchanged").await;
        let changed = MANIFEST.replace("b: '2'", "c: '3'");
        k.prints("apply -f -", &changed, "configmap/settings configured")
            .await;
        k.prints(
            "get configmap settings -o jsonpath={.data}",
            "",
            r#"{"a":"first","c":"3"}"#,
        )
        .await;
        let wide = k.prints("get pods -o wide", "", "edge-1").await;
        assert!(wide.contains("0/1") && wide.contains("Pending"), "{wide}");
        k.prints(
            "get pods -A --field-selector spec.nodeName=edge-1",
            "",
            "web",
        )
        .await;
        k.prints("get pods -l app=web -o name", "", "pod/web").await;
        k.prints("get all", "", "web").await;
        k.prints(
            "get pod web -o yaml",
            "",
            "terminationGracePeriodSeconds: 30",
        )
        .await;
        k.prints("describe pod web", "", "registry.example/web:1")
            .await;
        k.prints("label pod web tier=front", "", "labeled").await;
        k.prints("annotate pod web note=x", "", "annotated").await;
        k.prints("get pods --show-labels", "", "tier=front").await;
        k.prints(
            r#"patch cm settings --type=json -p [{"op":"remove","path":"/data/c"}]"#,
            "",
            "patched",
        )
        .await;
        k.prints(
            r#"patch pod web -p {"spec":{"containers":[{"name":"c","image":"i:2"}]}}"#,
            "",
            "patched",
        )
        .await;
        k.prints(
            "get pod web -o jsonpath={.spec.containers[0].image}{.spec.containers[0].env}",
            "",
            r#"i:2[{"name":"A","value":"1"}]"#,
        )
        .await;
        k.prints(
            "create configmap made --from-literal=x=1",
            "",
            "configmap/made created",
        )
        .await;
        k.prints(
            "create secret generic hidden --from-literal=x=1",
            "",
            "secret/hidden created",
        )
        .await;
        k.prints("run alone --image=busybox", "", "pod/alone created")
            .await;
        k.prints("auth can-i create pods", "", "yes").await;
        k.prints("get --raw /readyz?verbose", "", "readyz check passed")
            .await;
        k.refuses("get pod nope", "", "pods \"nope\" not found")
            .await;
        k.refuses("create configmap made", "", "already exists")
            .await;
        k.refuses("delete ns default", "", "this namespace may not be deleted")
            .await;
        k.prints("delete pod alone", "", "pod \"alone\"").await;
        k.prints("delete pod web --wait=false", "", "deleted").await;
        k.prints("get pods", "", "Terminating").await;
        k.prints(
            "delete pod web --force --grace-period=0",
            "",
            "force deleted",
        )
        .await;
        k.prints("delete configmap settings made", "", "deleted")
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_bring_their_kinds() {
    for program in programs() {
        let k = Place::new(&program).await;
        k.prints("apply -f -", DEFINITION, "created").await;
        k.prints(
            "wait --for=condition=established crd/things.ex.io --timeout=20s",
            "",
            "met",
        )
        .await;
        k.prints("apply -f -", THING, "thing.ex.io/t1 created")
            .await;
        k.prints("apply -f -", THING, "thing.ex.io/t1 unchanged")
            .await;
        k.prints("get th", "", "SIZE").await;
        k.prints(
            "apply -f -",
            &THING.replace('5', "6"),
            "thing.ex.io/t1 configured",
        )
        .await;
        k.prints("get things.v1.ex.io t1 -o jsonpath={.spec.size}", "", "6")
            .await;
        k.refuses(
            "apply -f -",
            &THING.replace('5', "0"),
            "should be greater than or equal to 1",
        )
        .await;
        k.prints("delete -f -", DEFINITION, "deleted").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_and_waits_see_changes() {
    for program in programs() {
        let k = Place::new(&program).await;
        k.prints("create ns site", "", "created").await;
        k.prints("apply -n site -f -", MANIFEST, "created").await;
        let (_watching, mut lines) = k.follow("get pods -n site --watch");
        line_with(&mut lines, "Pending").await;
        let (waiting, mut waited) = k.follow("wait -n site --for=delete pod/web --timeout=40s");
        k.prints("delete pod web -n site --wait=false", "", "deleted")
            .await;
        line_with(&mut lines, "Terminating").await;
        k.prints(
            "delete pod web -n site --force --grace-period=0",
            "",
            "deleted",
        )
        .await;
        line_with(&mut waited, "condition met").await;
        drop(waiting);
        // Its contents go with the namespace, and kubectl sees it go.
        k.prints("delete ns site", "", "namespace \"site\" deleted")
            .await;
        k.refuses("get ns site", "", "not found").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_edited_and_replaced() {
    for program in programs() {
        let k = Place::new(&program).await;
        k.prints("apply -f -", MANIFEST, "created").await;
        let edited = {
            let mut command = k.command("edit configmap settings");
            command.env("KUBE_EDITOR", "sed -i s/first/edited/");
            soon(command.output()).await.unwrap()
        };
        let said = String::from_utf8_lossy(&edited.stdout).into_owned();
        assert!(
            said.contains("configmap/settings edited"),
            "{said} {edited:?}"
        );
        k.prints("get cm settings -o jsonpath={.data.a}", "", "edited")
            .await;
        let whole = k.prints("get cm settings -o json", "", "edited").await;
        let replaced = whole.replace("edited", "replaced");
        k.prints("replace -f -", &replaced, "configmap/settings replaced")
            .await;
        // The copy is old now.
        k.refuses("replace -f -", &whole, "the object has been modified")
            .await;
        k.prints("get cm settings -o jsonpath={.data.a}", "", "replaced")
            .await;
        let dry = k.run("apply --dry-run=server -f -", MANIFEST).await;
        if dry.err.contains("doesn't support dry-run") {
            // Before 1.21 kubectl asks the full OpenAPI v2 document, which is not served.
            continue;
        }
        assert!(
            dry.out.contains("server dry run"),
            "{} {}",
            dry.out,
            dry.err
        );
        let diff = k.run("diff -f -", MANIFEST).await;
        assert!(diff.out.contains("replaced"), "{} {}", diff.out, diff.err);
    }
}
