//! Both sessions together and against what the real peers sent; the drivers over loopback.

mod converge;
mod drivers;
mod recording;
mod replay_client;
mod replay_server;
