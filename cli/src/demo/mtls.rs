//! Step 4: STRICT, PERMISSIVE, and certificates that the mesh must not take.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_lab::Netns;
use aquifer_objects::{Kind, Object};

use super::{Demo, client};

const STRICT: &str = include_str!("../../../examples/shop/policies/strict.yaml");
const PERMISSIVE: &str = include_str!("../../../examples/shop/policies/permissive.yaml");

pub(super) async fn run(demo: &mut Demo) -> Result<()> {
    let outside = async |demo: &Demo| client::get(&demo.lab, "outside", "client", "http://payments.shop/").await;
    demo.lab.apply(STRICT).await?;
    let refused = demo.within(Duration::from_secs(1), async || Ok(!outside(demo).await?.ok())).await?;
    let inside = client::get(&demo.lab, "shop", "orders", "http://payments/").await?;
    demo.claim(refused.is_some(), "STRICT: plaintext from `outside` is refused");
    demo.claim(inside.ok(), "STRICT: orders → payments goes on");
    demo.lab.apply(PERMISSIVE).await?;
    let let_in = demo.within(Duration::from_secs(1), async || Ok(outside(demo).await?.ok())).await?;
    demo.claim(let_in.is_some(), "PERMISSIVE: plaintext from `outside` is let in");

    let folder = demo.lab.state_dir().join("demo-certificates");
    let root = demo.lab.root_cert();
    let key = signing_key(demo, &folder).await?;
    make_certificates(&folder, &root, &key).await?;
    let pod = demo.lab.pod("shop", "payments").await?;
    let target = format!("{}:15008", pod.ipv4());
    for (name, accepted, what) in [
        ("right", true, "the mesh's root and trust domain: the handshake completes (control)"),
        ("foreign", false, "the mesh's root, trust domain other.example: refused on 15008"),
        ("self-signed", false, "self-signed with orders' name: refused on 15008"),
    ] {
        let (cert, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        // After the handshake an HTTP/2 server speaks first (SETTINGS): its bytes are the proof that we were let in.
        let script = format!(
            "timeout 5 openssl s_client -connect {target} -tls1_3 -alpn h2 -quiet -cert {} -key {} </dev/null 2>&1 | od -c | head -40",
            cert.display(),
            key.display()
        );
        let from = Netns::Pod { namespace: "outside".into(), name: "client".into() };
        let output = demo.lab.netns_exec(from, &["sh", "-c", &script]).await?;
        let text: String = output.stdout.lines().flat_map(|line| line.split_whitespace().skip(1)).collect();
        let alert = text.contains("alert");
        demo.claim(alert != accepted && !text.is_empty(), what);
    }
    Ok(())
}

/// The key that the mesh's root signs with, where the control plane keeps it: in a file, or in a Secret.
async fn signing_key(demo: &Demo, folder: &Path) -> Result<PathBuf> {
    let root = demo.lab.root_cert();
    let data = root.parent().context("the control plane's folder")?;
    let file = ["ca-key.pem", "root-key.pem"].map(|name| data.join(name)).into_iter().find(|path| path.exists());
    if let Some(file) = file {
        return Ok(file);
    }
    let secrets = demo.lab.objects(&[Kind::Secret]).await?;
    let key = secrets.iter().find_map(|object| match object {
        Object::Secret(secret) => secret.data.as_ref()?.get("ca-key.pem"),
        _ => None,
    });
    let key = key.with_context(|| format!("no CA key in {}, nor in a Secret", data.display()))?;
    tokio::fs::create_dir_all(folder).await?;
    let copy = folder.join("ca-key.pem");
    tokio::fs::write(&copy, &key.0).await?;
    Ok(copy)
}

/// Three client certificates, made with the machine's openssl.
async fn make_certificates(folder: &Path, root: &Path, key: &Path) -> Result<()> {
    let script = r#"
set -e
mkdir -p "$1"; cd "$1"
san() { echo "subjectAltName=critical,URI:spiffe://$1/ns/shop/sa/orders"; }
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }
signed_by_root() { key "$1"; openssl req -new -key "$1.key" -subj / -out "$1.csr"; san "$2" > "$1.ext"
  openssl x509 -req -in "$1.csr" -CA "$ROOT" -CAkey "$KEY" -CAserial serial -CAcreateserial -days 1 -extfile "$1.ext" -out "$1.pem"; }
ROOT=$2; KEY=$3
signed_by_root right cluster.local
signed_by_root foreign other.example
key self-signed
openssl req -x509 -new -key self-signed.key -subj / -days 1 -addext "$(san cluster.local)" -out self-signed.pem
"#;
    let output = tokio::process::Command::new("sh")
        .args(["-c", script, "sh"])
        .args([folder, root, key])
        .output()
        .await
        .context("running openssl")?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
