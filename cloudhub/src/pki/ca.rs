//! The certificate authority: makes itself, signs leaves.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};

/// Certificates start this long before they are made, so that a node whose clock is a little
/// behind does not refuse them.
pub const BACKDATE_SECS: u64 = 5 * 60;
/// How long the authority itself lives (20 years).
pub const CA_LIFETIME_SECS: u64 = 20 * 365 * 24 * 3600;
/// How long server, administrator and node certificates live (365 days, as KubeEdge's).
pub const LEAF_LIFETIME_SECS: u64 = 365 * 24 * 3600;

/// A certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[error("certificate could not be made")]
pub struct SignError(#[from] rcgen::Error);

/// A certificate and its key, both PEM.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Certificate, PEM.
    pub certificate_pem: String,
    /// Private key, PKCS#8 PEM.
    pub key_pem: String,
}

/// The certificate authority of this hub.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
    pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a new authority; returns it with its private key (PEM), to be kept 0600.
    pub fn generate(now_secs: u64) -> Result<(Self, String), SignError> {
        let key = KeyPair::generate()?;
        let mut params = params("cloudhub-ca", None, now_secs, CA_LIFETIME_SECS);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key_pem = key.serialize_pem();
        let pem = params.self_signed(&key)?.pem();
        Ok((Self::load(&pem, &key_pem)?, key_pem))
    }

    /// Takes up an authority from its files.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, SignError> {
        use rustls_pki_types::pem::PemObject;
        let key = KeyPair::from_pem(key_pem)?;
        let der = rustls_pki_types::CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self {
            issuer,
            der: der.to_vec(),
            pem: certificate_pem.to_owned(),
        })
    }

    /// The authority's certificate, DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The authority's certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A server certificate for these names and addresses.
    pub fn server(&self, names: &[String], now_secs: u64) -> Result<Leaf, SignError> {
        let mut params = params("cloudhub", None, now_secs, LEAF_LIFETIME_SECS);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        self.leaf(&params)
    }

    /// A client certificate for a person or a program.
    pub fn client(&self, user: &str, group: &str, now_secs: u64) -> Result<Leaf, SignError> {
        self.leaf(&client_params(user, group, now_secs))
    }

    /// Signs `public_key` as `user` of `group`, for client authentication only.
    ///
    /// Returns the certificate (DER) and its serial number.
    pub fn sign_client(
        &self,
        public_key: &impl PublicKeyData,
        user: &str,
        group: &str,
        now_secs: u64,
    ) -> Result<(Vec<u8>, String), SignError> {
        let params = client_params(user, group, now_secs);
        let serial = params
            .serial_number
            .as_ref()
            .map(|s| super::serial_text(s.as_ref()));
        let certificate = params.signed_by(public_key, &self.issuer)?;
        Ok((certificate.der().to_vec(), serial.unwrap_or_default()))
    }

    fn leaf(&self, params: &CertificateParams) -> Result<Leaf, SignError> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

fn client_params(user: &str, group: &str, now_secs: u64) -> CertificateParams {
    let mut params = params(user, Some(group), now_secs, LEAF_LIFETIME_SECS);
    params.is_ca = IsCa::ExplicitNoCa;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

fn params(name: &str, group: Option<&str>, now_secs: u64, life_secs: u64) -> CertificateParams {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(group) = group {
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = epoch + Duration::from_secs(now_secs.saturating_sub(BACKDATE_SECS));
    params.not_after = epoch + Duration::from_secs(now_secs + life_secs);
    // 16 random octets with the top bit clear: positive, and never a leading zero octet.
    let mut serial: [u8; 16] = rand::random();
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    params
}
