//! The pages through discovery: `istioctl proxy-status` asks for the type `istio.io/debug/syncz`, `istioctl x
//! internal-debug <page>` for `istio.io/debug` and the page as the resource's name.

use aquifer_proto::type_url::DEBUG;
use aquifer_runtime::http::parse_query;
use aquifer_xds::server::{Caller, Inspect};
use prost_types::Any;
use serde_json::json;
use tonic::Status;

use super::{Pages, syncz};

/// What istioctl asks for.
pub struct Istioctl {
    pages: Pages,
    root_namespace: String,
    identifier: String,
}

impl Istioctl {
    /// Shows `pages` to the service accounts of `root_namespace`, in the name of the pod of this replica: istioctl tells
    /// replicas apart by it.
    pub fn new(pages: Pages, root_namespace: &str, pod: &str, revision: &str) -> Self {
        let info = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "revision": revision,
            "golang_version": "",
            "status": "",
            "tag": "",
        });
        let identifier = json!({ "Component": "istiod", "ID": pod, "Info": info }).to_string();
        Self { pages, root_namespace: root_namespace.to_owned(), identifier }
    }

    fn allow(&self, caller: &Caller) -> Result<(), Status> {
        match caller {
            Caller::Workload { namespace, .. } if *namespace == self.root_namespace => Ok(()),
            Caller::Workload { namespace, service_account } => Err(Status::permission_denied(format!(
                "{namespace}/{service_account} may not see debug pages: call as a service account of namespace {:?}",
                self.root_namespace
            ))),
            Caller::Anonymous => Err(Status::unauthenticated("debug pages are for callers with a token")),
        }
    }
}

#[tonic::async_trait]
impl Inspect for Istioctl {
    fn identifier(&self) -> String {
        self.identifier.clone()
    }

    async fn answer(&self, caller: &Caller, type_url: &str, names: &[String]) -> Result<Vec<Any>, Status> {
        self.allow(caller)?;
        let own = type_url.strip_prefix(DEBUG).and_then(|rest| rest.strip_prefix('/'));
        let wanted = match (own, names) {
            (Some("syncz"), _) => return Ok(syncz::client_configs(&self.pages.clients)),
            (Some("config_dump"), _) => {
                return Err(Status::unimplemented(
                    "config_dump is Envoy's, and no proxy here is one: use istioctl ztunnel-config, or aquifer status",
                ));
            }
            (Some(page), _) => page,
            (None, [page]) => page.as_str(),
            (None, _) => {
                return Err(Status::invalid_argument("name one debug page as the resource, such as \"list\""));
            }
        };
        let (page, query) = wanted.split_once('?').unwrap_or((wanted, ""));
        let value = match self.pages.show(page, &parse_query(query)).await {
            Some(page) => serde_json::to_vec(&page).map_err(|error| Status::internal(error.to_string()))?,
            // The words at which istioctl prints the list of pages.
            None => b"404 page not found\n".to_vec(),
        };
        Ok(vec![Any { type_url: type_url.to_owned(), value }])
    }
}
