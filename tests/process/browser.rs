//! Controls a headless browser.

use crate::support::*;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

/// A headless browser, controlled by the WebDriver protocol of the W3C.
pub struct Browser {
    _driver: Process,
    address: SocketAddr,
    session: String,
}

impl Browser {
    /// Returns whether the browser and its driver are installed.
    pub fn is_installed() -> bool {
        let installed =
            |program: &str| Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
        require_tool("chromium", installed("chromium") && installed("chromedriver"))
    }

    pub fn start(profile: &Path) -> Self {
        let driver = Process::start(Command::new("chromedriver").args(["--port=0"]));
        let port = wait_for_line(&driver.stdout, "ChromeDriver was started successfully on port ");
        let address: SocketAddr = format!("127.0.0.1:{}", port.trim_end_matches('.')).parse().unwrap();
        let profile = format!("--user-data-dir={}", profile.display());
        let options = json!({
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,1600", profile],
        });
        let capabilities = json!({ "alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": options,
            "goog:loggingPrefs": { "performance": "ALL", "browser": "ALL" },
        } });
        let mut browser = Self { _driver: driver, address, session: String::new() };
        let session = browser.command("POST", "", &json!({ "capabilities": capabilities }));
        session["sessionId"].as_str().unwrap().clone_into(&mut browser.session);
        browser
    }

    /// Sends a command to the driver and returns its value.
    pub fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        let session =
            if self.session.is_empty() { "/session".to_owned() } else { format!("/session/{}", self.session) };
        let body = if method == "GET" { String::new() } else { body.to_string() };
        // The driver refuses requests with another Host.
        let head = format!(
            "{method} {session}{path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n",
            self.address,
            body.len()
        );
        let response = self.send(&format!("{head}\r\n{body}")).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {response}");
        serde_json::from_str::<Value>(body).unwrap()["value"].clone()
    }

    /// Sends a request and returns the whole response. Its end follows from Content-Length, because the driver keeps the
    /// connection open.
    fn send(&self, request: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(MAX_WAIT))?;
        stream.write_all(request.as_bytes())?;
        let (mut reader, mut response, mut length) = (BufReader::new(stream), String::new(), 0);
        while !response.ends_with("\r\n\r\n") {
            let before = response.len();
            if reader.read_line(&mut response)? == 0 {
                return Ok(response);
            }
            if let Some((name, value)) =
                response[before..].split_once(':').filter(|(n, _)| n.eq_ignore_ascii_case("content-length"))
            {
                length = value.trim().parse().unwrap_or_else(|e| panic!("{name}: {e}"));
            }
        }
        reader.take(length).read_to_string(&mut response)?;
        Ok(response)
    }

    pub fn run(&self, script: &str) -> Value {
        self.command("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    pub fn log(&self, kind: &str) -> Vec<Value> {
        self.command("POST", "/se/log", &json!({ "type": kind })).as_array().unwrap().clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.send(&format!("DELETE /session/{} HTTP/1.1\r\nHost: {}\r\n\r\n", self.session, self.address));
    }
}
