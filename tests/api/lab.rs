//! The lab's stand-ins for scheduler, kubelet and controllers on an API server: a cluster without the mesh.

use std::time::Duration;

use aquifer_lab::{Lab, LabOptions};
use aquifer_objects::{Kind, Object};

use crate::harness::eventually;

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: web, image: web, command: [sleep, infinity], ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: alone, namespace: shop}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: alone, image: alone, command: [sleep, infinity]}]
";

#[tokio::test(flavor = "multi_thread")]
async fn pods_live_and_die_as_the_api_server_says() {
    let options = LabOptions { api_server: true, ..LabOptions::plain() };
    let lab = Lab::start(options).await.unwrap_or_else(|error| panic!("{error}"));
    println!("the lab with an API server started in {:.1} s", lab.start_took().as_secs_f64());
    lab.apply(SHOP).await.expect("the shop");
    let pods = lab.wait_ready("shop", "web", 2).await.expect("two pods");
    // A person's pod is bound by the stand-in for the scheduler, and has the uid that the server gave it.
    let alone = eventually("a pod of its own is ready", Duration::from_secs(5), async || {
        let pod = lab.pod("shop", "alone").await.map_err(|error| error.to_string())?;
        if pod.ready { Ok(pod) } else { Err(pod.message) }
    })
    .await;
    let found =
        lab.objects(&[Kind::Pod, Kind::EndpointSlice, Kind::Service, Kind::ServiceAccount]).await.expect("objects");
    let of_pod = found.iter().find(|object| object.kind() == Kind::Pod && object.name() == "alone").expect("the pod");
    assert_eq!(of_pod.meta().uid.as_deref(), Some(alone.uid.as_str()));
    assert!(found.iter().any(|object| object.kind() == Kind::ServiceAccount && object.namespace() == "shop"));
    eventually("the Service's endpoints are its ready pods", Duration::from_secs(2), async || {
        let objects = lab.objects(&[Kind::EndpointSlice]).await.map_err(|error| error.to_string())?;
        let ready = objects.iter().filter(|object| object.namespace() == "shop").map(|object| match object {
            Object::EndpointSlice(slice) => slice.endpoints.iter().flatten().count(),
            _ => 0,
        });
        let ready: usize = ready.sum();
        if ready == pods.len() { Ok(()) } else { Err(format!("{ready} endpoints")) }
    })
    .await;

    lab.scale("shop", "web", 1).await.expect("scaling");
    lab.wait_ready("shop", "web", 1).await.expect("one pod");
    lab.delete("Pod", "shop", "alone").await.expect("deleting");
    eventually("the pod is gone from the API server", Duration::from_secs(5), async || {
        let objects = lab.objects(&[Kind::Pod]).await.map_err(|error| error.to_string())?;
        let left = objects.iter().any(|object| object.name() == "alone");
        if left { Err("it is there".to_owned()) } else { Ok(()) }
    })
    .await;
    let refused =
        lab.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: UPPER, namespace: shop}\nspec: {containers: []}\n");
    let refused = refused.await.expect_err("a name that no pod may have").to_string();
    assert!(refused.contains("UPPER") || refused.contains("name"), "{refused}");

    lab.delete("Namespace", "", "shop").await.expect("deleting a namespace");
    eventually("the namespace is gone with all that was in it", Duration::from_secs(5), async || {
        let objects = lab.objects(&[Kind::Namespace, Kind::Pod, Kind::Deployment, Kind::Service]).await;
        let objects = objects.map_err(|error| error.to_string())?;
        let left: Vec<String> = objects
            .iter()
            .filter(|object| object.namespace() == "shop" || object.name() == "shop")
            .map(|object| object.key().to_string())
            .collect();
        if left.is_empty() { Ok(()) } else { Err(left.join(" ")) }
    })
    .await;
    lab.down().await.expect("the end");
}
