//! What people are told of the settings.

/// What to set, for `--help`. Defaults in brackets.
pub const SETTINGS: &str = "\
Settings (environment), under Istio's names. Defaults are in brackets; docs/compatibility.md says more.

Who and where this is:
  NODE_NAME                  the node whose pods are served; must be set
  POD_NAME, POD_NAMESPACE, SERVICE_ACCOUNT, INSTANCE_IP
                             the proxy's own pod
  ISTIO_META_CLUSTER_ID, CLUSTER_ID
                             the first that is set (Kubernetes)
  CLUSTER_DOMAIN             (cluster.local)
  TRUST_DOMAIN               (cluster.local)
  NETWORK                    ()
  ISTIO_META_*, ISTIO_METAJSON_*
                             what the control plane is told besides
  PROXY_CONFIG               Istio's ProxyConfig in YAML: discoveryAddress, proxyAdminPort, statsPort, concurrency,
                             proxyMetadata; over defaultConfig of ./etc/istio/config/mesh
  INPOD_UDS                  the node agent's socket (/var/run/ztunnel/ztunnel.sock)

Control plane and certificates:
  XDS_ADDRESS, CA_ADDRESS    (https://istiod.istio-system.svc:15012; outside of a cluster https://localhost:15012).
                             An empty CA_ADDRESS: no certificates, and no HBONE
  XDS_ROOT_CA, CA_ROOT_CA    file, PEM text, or SYSTEM (./var/run/secrets/istio/root-cert.pem)
  ALT_XDS_HOSTNAME, ALT_CA_HOSTNAME
                             the name in the server's certificate, where it isn't that of the address
  AUTH_TOKEN                 file or text (./var/run/secrets/tokens/istio-token, if there is one)
  XDS_HEADER_*, CA_HEADER_*  more headers
  XDS_ON_DEMAND              workloads and services are asked for one by one (false)
  SECRET_TTL                 of certificates (24h)
  CRL_PATH                   file or folder of revocation lists
  COMPLIANCE_POLICY          pqc: post-quantum key exchange and no other
  TLS12_ENABLED              TLS 1.2 is spoken too (false)

Connections:
  ZTUNNEL_WORKER_THREADS     number, or share of the processors (25%, but 2 at least)
  ZTUNNEL_CPU_LIMIT, ZTUNNEL_RESOURCE_CPU_LIMIT, ZTUNNEL_RESOURCE_CPU_REQUEST
                             processors that there are, and at least so many threads
  IPV6_ENABLED               (true)
  ENABLE_ORIG_SRC            servers see the client's address (where the kernel permits it)
  PACKET_MARK                (1337)
  KEEPALIVE_ENABLED          (true)
  KEEPALIVE_TIME, KEEPALIVE_INTERVAL, KEEPALIVE_RETRIES
                             (180s, 180s, 9)
  USER_TIMEOUT_ENABLED       (false)
  INPOD_PORT_REUSE           (true)
  HTTP2_STREAM_WINDOW_SIZE   bytes that a stream starts with; it widens with use (262144)
  HTTP2_CONNECTION_WINDOW_SIZE
                             bytes that a connection may hold, at most (16777216)
  HTTP2_POD_WINDOW_SIZE      what all peers of a pod may send before it is passed on (134217728)
  HTTP2_FRAME_SIZE           (1048576)
  POOL_MAX_STREAMS_PER_CONNECTION
                             (100)
  POOL_SPARE_CONNECTIONS     to one peer, beyond what streams need (3)
  POOL_UNUSED_RELEASE_TIMEOUT
                             (300s)
  SAME_NODE_FAST_PATH        pods of this node without a tunnel, where the control plane permits it (true)
  LOCALHOST_APP_TUNNEL       PROXY tunnels go to loopback (true)
  PREFERED_SERVICE_NAMESPACE whose Services come first where several share an address
  ISTIO_META_DNS_CAPTURE     the DNS proxy (true)
  ISTIO_META_DNS_PROXY_ADDR  where it listens (localhost:15053)
  CONNECTION_TERMINATION_DEADLINE
                             from SIGTERM to the cut (5s; TERMINATION_GRACE_PERIOD_SECONDS less five, of ten and fewer
                             less one)

Policies and logs:
  AUTHZ_POLICY_GRACE         how long a connection waits for a policy that is named and unknown (2s)
  AUTHZ_UNKNOWN_POLICY       what it then means: deny or skip (deny)
  AUTHZ_POLICY_INFO_LOGGING  decisions at level info (false)
  ENABLE_RESPONSE_BAGGAGE    clients are told who serves them (true)
  RUST_LOG, LOG_FORMAT       log level (info) and shape (text, json)

Not supported, and refused: PROXY_MODE other than shared, PROXY_WORKLOAD_INFO, LOCAL_XDS, LOCAL_XDS_PATH,
  UNSTABLE_ENABLE_SOCKS5, FAKE_CA, and ENABLE_PROXY or INPOD_ENABLED set to false";
