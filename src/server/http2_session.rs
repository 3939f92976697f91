//! Implements Pingora's trait for sessions of other protocols for the streams of HTTP/2, so that Pingora can forward their
//! requests.

use crate::server::http2_stream::Http2Stream;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::stream::Stream;
use h2::Reason;
use http::HeaderMap;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorType, OrErr, Result};
use std::sync::Arc;
use std::time::Duration;

#[async_trait]
impl Session for Http2Stream {
    fn req_header(&self) -> &RequestHeader {
        &self.request
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.request
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.read_part().await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        while !Session::is_body_done(self) && self.read_part().await?.is_some() {}
        Ok(())
    }

    async fn write_response_header(&mut self, response: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.write_header(response, end)
    }

    async fn write_response_header_ref(&mut self, response: &ResponseHeader, end: bool) -> Result<()> {
        self.write_header(Box::new(response.clone()), end)
    }

    async fn write_body(&mut self, part: Bytes, end: bool) -> Result<()> {
        self.write_part(part, end, &mut 0).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        if let Some(writer) = self.writer.as_mut().filter(|_| !self.ended) {
            writer.send_trailers(trailers).or_err(ErrorType::WriteError, "while writing HTTP/2 trailers")?;
            self.ended = true;
        }
        Ok(())
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut ended = false;
        for task in tasks {
            ended |= match task {
                HttpTask::Header(header, end) => {
                    self.write_header(header, end).map_err(Error::into_down)?;
                    end
                }
                HttpTask::Body(part, end) => {
                    if let Some(part) = part.filter(|part| !part.is_empty()) {
                        self.write_part(part, end, &mut 0).await?;
                    }
                    end
                }
                HttpTask::Trailer(Some(trailers)) => {
                    self.write_trailers(*trailers).await?;
                    true
                }
                HttpTask::Trailer(None) | HttpTask::Done => true,
                HttpTask::UpgradedBody(..) => {
                    return Error::e_explain(ErrorType::InternalError, "an upgraded connection over HTTP/2");
                }
                HttpTask::Failed(error) => return Err(error),
            };
        }
        if ended {
            self.end().map_err(Error::into_down)?;
        }
        Ok(ended)
    }

    /// Has no effect: the deadline of a body is kept by the code that forwards it.
    fn set_read_timeout(&mut self, _: Option<Duration>) {}

    fn get_read_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.write_timeout = timeout;
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.write_timeout
    }

    /// Has no effect: no body is drained.
    fn set_total_drain_timeout(&mut self, _: Option<Duration>) {}

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        None
    }

    fn request_summary(&self) -> String {
        format!("{} {}", self.request.method, self.request.uri.path())
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.response.as_deref()
    }

    async fn shutdown(&mut self, _: u32, _: &str) {
        if !self.ended {
            self.respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }

    fn is_body_done(&mut self) -> bool {
        self.has_no_body() || self.body.is_end_stream()
    }

    async fn finish(&mut self) -> Result<()> {
        self.end()
    }

    fn is_body_empty(&mut self) -> bool {
        self.has_no_body()
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if !no_body_expected && !Session::is_body_done(self) {
            return self.read_part().await;
        }
        let reason = self.reset().await?;
        Error::e_explain(ErrorType::H2Error, format!("the client reset the stream: {reason}"))
    }

    fn body_bytes_sent(&self) -> usize {
        self.bytes_sent
    }

    fn body_bytes_read(&self) -> usize {
        self.bytes_read
    }

    fn digest(&self) -> Option<&Digest> {
        Some(&self.digest)
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        Arc::get_mut(&mut self.digest)
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.peer_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.local_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        Bytes::new()
    }

    fn enable_retry_buffering(&mut self) {
        self.retry_buffer.get_or_insert_with(|| Some(BytesMut::new()));
    }

    fn retry_buffer_truncated(&self) -> bool {
        matches!(self.retry_buffer, Some(None))
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        let buffer = self.retry_buffer.as_ref()?.as_ref()?;
        (!buffer.is_empty()).then(|| buffer.clone().freeze())
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}
