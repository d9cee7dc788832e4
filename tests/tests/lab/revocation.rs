//! A certificate is revoked while its connections are open: CRL_PATH, from the file to the cut.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use aquifer_lab::{Component, Lab, LabOptions};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{ORDERS, access_lines_appear, connect, counted, eventually, get, meshed_shop, service_ips};

/// The list that both proxies see, at the same place in each pod.
struct List<'a> {
    lab: &'a Lab,
    issuer: Issuer<'static, KeyPair>,
}

const NAME: &str = "ca-crl.pem";

impl<'a> List<'a> {
    /// Signed with the mesh's own root.
    fn of(lab: &'a Lab) -> Result<Self> {
        let key = fs::read_to_string(lab.state_dir().join("istiod/root-key.pem")).context("reading the root's key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "cluster.local");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self { lab, issuer: Issuer::new(params, KeyPair::from_pem(&key)?) })
    }

    fn signed(&self, serials: &[SerialNumber]) -> Result<String> {
        let revoked = |serial: &SerialNumber| RevokedCertParams {
            serial_number: serial.clone(),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }

    /// Replaces the file on both nodes, by rename.
    fn write(&self, text: &str) -> Result<()> {
        for node in ["node1", "node2"] {
            let folder = self.lab.state_dir().join("nodes").join(node);
            fs::write(folder.join("new"), text)?;
            fs::rename(folder.join("new"), folder.join(NAME))?;
        }
        Ok(())
    }
}

/// What `orders` shows, read as the operator would: in the config dump of its node.
async fn serial(lab: &Lab) -> Result<SerialNumber> {
    let dump: serde_json::Value = serde_json::from_str(&lab.ztunnel_admin("node1", "/config_dump").await?)?;
    let certificates = dump["certificates"].as_array().context("certificates in the config dump")?;
    let ours = certificates.iter().find(|entry| entry["identity"] == ORDERS).context("a certificate of orders")?;
    let decimal = ours["certChain"][0]["serialNumber"].as_str().context("a serial number")?;
    Ok(SerialNumber::from(big_endian(decimal)))
}

/// A serial number has up to 20 bytes.
fn big_endian(decimal: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    for digit in decimal.bytes() {
        let mut carry = u32::from(digit - b'0');
        for byte in bytes.iter_mut().rev() {
            carry += u32::from(*byte) * 10;
            *byte = carry.to_le_bytes()[0];
            carry >>= 8;
        }
        if carry > 0 {
            bytes.insert(0, carry.to_le_bytes()[0]);
        }
    }
    bytes
}

async fn ping(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"PING\r\n").await?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_certificate_ends_what_is_open_and_refuses_what_comes() -> Result<()> {
    let lab = meshed_shop(LabOptions::default().ztunnel_var("CRL_PATH", format!("/var/run/ztunnel/{NAME}"))).await?;
    let list = List::of(&lab)?;
    let orders = lab.pod("shop", "orders").await?;
    let cart = service_ips(&lab, "shop", "cart").await?[0];
    let (mut open, mut idle) =
        (connect(&lab, &orders, (cart, 6379).into())?, connect(&lab, &orders, (cart, 6379).into())?);
    ping(&mut open).await?;
    ping(&mut idle).await?;

    // A list that names nobody here, then one that cannot be read: nothing changes.
    list.write(&list.signed(&[SerialNumber::from(1)])?)?;
    let loaded = async |text: &str| {
        let log = lab.component_logs(&Component::ztunnel("node2")).await?;
        Ok(log.contains(text))
    };
    eventually("the list was loaded", Duration::from_secs(2), async || loaded("revocation lists loaded").await).await?;
    list.write("-----BEGIN X509 CRL-----\nhalf")?;
    eventually("the bad file was reported", Duration::from_secs(2), async || loaded("bad CRL file").await).await?;
    ping(&mut open).await?;
    assert!(get(&lab, "shop", "orders", "http://payments/").await?.ok());

    list.write(&list.signed(&[serial(&lab).await?])?)?;
    let mut rest = Vec::new();
    // Without a byte sent: the cut comes by itself.
    let cut = tokio::time::timeout(Duration::from_secs(10), idle.read_to_end(&mut rest)).await;
    assert!(cut.is_ok(), "an idle connection of a revoked peer lives on");
    eventually("the busy one is cut", Duration::from_secs(2), async || Ok(ping(&mut open).await.is_err())).await?;
    // Another pod, and each pod has its own acceptor.
    eventually("a new connection is refused", Duration::from_secs(2), async || {
        Ok(!get(&lab, "shop", "orders", "http://payments/").await?.ok())
    })
    .await?;
    access_lines_appear(&lab, "node2", 2, &["reason=\"certificate_revoked\"", ORDERS]).await?;
    let proxy = Component::ztunnel("node2");
    for (metric, label) in [
        ("istio_tcp_connections_closed_total", "response_flags=\"CERT_REVOKED\""),
        ("istio_crl_policy_rejections_total", "reporter=\"destination\""),
    ] {
        counted(&lab, &proxy, metric, &[label], |n| n >= 1.0).await?;
    }
    assert!(get(&lab, "shop", "web", "http://payments/").await?.ok(), "others are not concerned");

    list.write(&list.signed(&[])?)?;
    eventually("the list without it lifts it", Duration::from_secs(2), async || {
        Ok(get(&lab, "shop", "orders", "http://payments/").await?.ok())
    })
    .await?;
    Ok(())
}
