//! A minimal Pingora server, which shows what Pingora itself costs per response.
//!
//! `bare ADDRESS FILE` responds to every request with the bytes of the file, from `request_filter`.

#![allow(clippy::unwrap_used)]

use async_trait::async_trait;
use bytes::Bytes;
use pingora::http::ResponseHeader;
use pingora::modules::http::HttpModules;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::Server;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Bare(Bytes);

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, _: &mut ()) -> pingora::Result<bool> {
        let mut header = ResponseHeader::build(200, Some(4))?;
        header.insert_header("content-type", "application/json")?;
        header.insert_header("content-length", self.0.len())?;
        session.write_response_header(Box::new(header), false).await?;
        session.write_response_body(Some(self.0.clone()), true).await?;
        Ok(true)
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> pingora::Result<Box<HttpPeer>> {
        pingora::Error::e_explain(pingora::ErrorType::InternalError, "this server does not forward requests")
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    // `cargo bench` runs this with other arguments. Only run.py starts it with these.
    let [_, address, file] = arguments.as_slice() else { return };
    let conf = Arc::new(ServerConf { threads: 1, ..ServerConf::default() });
    let mut server = Server::new_with_opt_and_conf(None, ServerConf { threads: 1, ..ServerConf::default() });
    server.bootstrap();
    let mut service = http_proxy_service(&conf, Bare(std::fs::read(file).unwrap().into()));
    service.add_tcp(address);
    server.add_service(service);
    server.run_forever();
}
