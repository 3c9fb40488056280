//! Which host is asked, and whom it may be.

use super::*;

/// A private authority, a server certificate of its own, and a CA that serves itself.
struct Pki {
    ca: PathBuf,
    server: Arc<rustls::ServerConfig>,
    selfish: Arc<rustls::ServerConfig>,
    selfish_ca: PathBuf,
    /// Answers only who shows a certificate of the authority.
    mutual: Arc<rustls::ServerConfig>,
    /// The node's certificate and key.
    node: (PathBuf, PathBuf),
}

fn pki(directory: &Path) -> Pki {
    let authority = |name: &str| {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        // Two authorities of one name would be one with a bad signature.
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let path = directory.join(name);
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        std::fs::write(&path, issuer.pem()).unwrap();
        (path, issuer)
    };
    let configured = |chain: Vec<u8>, key: &KeyPair, clients: Option<Vec<u8>>| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = match clients {
            None => config.with_no_client_auth(),
            Some(authority) => {
                let mut roots = rustls::RootCertStore::empty();
                roots.add(authority.into()).unwrap();
                let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
                    Arc::new(roots),
                    provider,
                );
                config.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        Arc::new(config.with_single_cert(vec![chain.into()], key).unwrap())
    };
    let serve = |chain: Vec<u8>, key: &KeyPair| configured(chain, key, None);
    let (ca, issuer) = authority("ca.pem");
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let (selfish_ca, selfish) = authority("selfish.pem");
    let node_key = KeyPair::generate().unwrap();
    let node_leaf = CertificateParams::new(vec!["node-1".to_owned()])
        .unwrap()
        .signed_by(&node_key, &issuer)
        .unwrap();
    let node = (directory.join("node.crt"), directory.join("node.key"));
    std::fs::write(&node.0, node_leaf.pem()).unwrap();
    std::fs::write(&node.1, node_key.serialize_pem()).unwrap();
    Pki {
        mutual: configured(leaf.der().to_vec(), &key, Some(issuer.der().to_vec())),
        node,
        server: serve(leaf.der().to_vec(), &key),
        selfish: serve(selfish.der().to_vec(), selfish.key()),
        ca,
        selfish_ca,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_a_private_authority_works_and_its_failures_say_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let pki = pki(directory.path());
    let secure = |tls: &Arc<rustls::ServerConfig>| {
        let registry = Registry::with(Behaviour {
            auth: Auth::Token,
            tls: Some(Arc::clone(tls)),
            ..Behaviour::default()
        });
        noisy(&registry, "a", 100 << 10);
        registry
    };
    let (good, selfish) = (secure(&pki.server), secure(&pki.selfish));
    let (trusted, unknown) = (secure(&pki.server), secure(&pki.server));
    let (trial, plain) = (secure(&pki.selfish), open_registry());
    let certs = directory.path().join("certs.d");
    let toml = certs.join(trusted.address.to_string());
    std::fs::create_dir_all(&toml).unwrap();
    let text = format!(
        "server = \"https://{}\"\nca = {:?}\n",
        trusted.address, pki.ca
    );
    std::fs::write(toml.join("hosts.toml"), text).unwrap();
    let entry = |registry: &Registry| RegistryHost {
        host: registry.address.to_string(),
        ..RegistryHost::default()
    };
    let Some(world) = World::with(|config| {
        hasty(config);
        config.registries.config_dir = Some(certs);
        config.registries.hosts = vec![
            RegistryHost {
                ca_file: Some(pki.ca.clone()),
                ..entry(&good)
            },
            RegistryHost {
                ca_file: Some(pki.selfish_ca.clone()),
                ..entry(&selfish)
            },
            RegistryHost {
                skip_verify: true,
                ..entry(&trial)
            },
            // Settings for TLS, and none of this authority.
            RegistryHost {
                ca_file: Some(pki.selfish_ca.clone()),
                ..entry(&unknown)
            },
            RegistryHost {
                ca_file: Some(pki.ca.clone()),
                ..entry(&plain)
            },
        ];
    }) else {
        return;
    };
    let name = |registry: &Registry| format!("{}/team/app:a", registry.address);
    for registry in [&good, &trusted, &trial] {
        world
            .runtime
            .pull(&name(registry), &friend())
            .await
            .unwrap();
    }
    for (registry, said) in [
        (&selfish, "self-signed CA certificate"),
        (&unknown, "unknown authority"),
        (&plain, "does not speak TLS"),
    ] {
        let (error, text) = failure(&world, &name(registry), &friend()).await;
        assert!(matches!(error, RuntimeError::Pull { .. }), "{error:?}");
        assert!(text.contains(said), "{text}");
        assert!(text.contains(&registry.address.to_string()), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_wants_the_nodes_certificate_is_shown_it() {
    let directory = tempfile::tempdir().unwrap();
    let pki = pki(directory.path());
    let strict = || {
        let registry = Registry::with(Behaviour {
            auth: Auth::Nobody,
            tls: Some(Arc::clone(&pki.mutual)),
            ..Behaviour::default()
        });
        noisy(&registry, "a", 100 << 10);
        registry
    };
    let (shown, by_toml, hidden) = (strict(), strict(), strict());
    let certs = directory.path().join("certs.d");
    let toml = certs.join(by_toml.address.to_string());
    std::fs::create_dir_all(&toml).unwrap();
    let text = format!(
        "server = \"https://{}\"\nca = {:?}\nclient = [[{:?}, {:?}]]\n",
        by_toml.address, pki.ca, pki.node.0, pki.node.1
    );
    std::fs::write(toml.join("hosts.toml"), text).unwrap();
    let entry = |registry: &Registry| RegistryHost {
        host: registry.address.to_string(),
        ca_file: Some(pki.ca.clone()),
        ..RegistryHost::default()
    };
    let Some(world) = World::with(|config| {
        hasty(config);
        config.registries.config_dir = Some(certs);
        config.registries.hosts = vec![
            RegistryHost {
                cert_file: Some(pki.node.0.clone()),
                key_file: Some(pki.node.1.clone()),
                ..entry(&shown)
            },
            entry(&hidden),
        ];
    }) else {
        return;
    };
    let name = |registry: &Registry| format!("{}/team/app:a", registry.address);
    let nobody = PullOptions::default();
    for registry in [&shown, &by_toml] {
        world.runtime.pull(&name(registry), &nobody).await.unwrap();
    }
    let (_, text) = failure(&world, &name(&hidden), &nobody).await;
    assert!(text.contains("client certificate"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_are_asked_in_turn_and_never_see_the_pods_credentials() {
    let (origin, mirror, nosy, lame) = (
        Registry::with(Behaviour::default()),
        open_registry(),
        Registry::with(Behaviour::default()),
        open_registry(),
    );
    noisy(&origin, "a", MIB);
    noisy(&mirror, "a", MIB);
    noisy(&nosy, "a", MIB);
    let Some(world) = World::with(|config| {
        hasty(config);
        config.registries.hosts = vec![RegistryHost {
            host: origin.address.to_string(),
            mirrors: vec![
                "127.0.0.1:1".to_owned(),
                nosy.address.to_string(),
                lame.address.to_string(),
                format!("http://{}", mirror.address),
            ],
            ..RegistryHost::default()
        }];
    }) else {
        return;
    };
    let reference = format!("{}/team/app:a", origin.address);
    world.runtime.pull(&reference, &friend()).await.unwrap();
    assert_eq!(origin.asked(), vec![], "the mirror has it");
    assert_eq!(
        nosy.asked(),
        vec![],
        "what was asked came without credentials"
    );
    assert!(!mirror.asked().is_empty());

    // A mirror that goes silent in the middle: the origin gives the rest.
    world.runtime.remove_image(&reference).await.unwrap();
    mirror.fault(Fault::Stall(300 << 10));
    mirror.fault(Fault::Stall(300 << 10));
    world.runtime.pull(&reference, &friend()).await.unwrap();
    let ranges: Vec<usize> = origin
        .asked()
        .iter()
        .filter_map(|(_, from)| *from)
        .collect();
    assert!(ranges.contains(&(300 << 10)), "{ranges:?}");

    // Nobody has it: everybody's answer is told.
    let (_, text) = failure(
        &world,
        &format!("{}/team/none:zz", origin.address),
        &friend(),
    )
    .await;
    for said in ["127.0.0.1:1", "cannot be reached"] {
        assert!(text.contains(said), "{text}");
    }
}
