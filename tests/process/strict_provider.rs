//! A provider whose every byte a test chooses: it reads HTTP/1.1 requests strictly, and a function writes the responses.

use crate::support::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A connection from Weir.
pub struct Connection {
    reader: BufReader<TcpStream>,
}

/// The head of a request.
#[derive(Debug, Clone)]
pub struct Head {
    /// The number of the connection on which it arrived.
    pub connection: usize,
    pub method: String,
    pub path: String,
    /// The header lines, names in lower case.
    pub lines: Vec<String>,
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

impl Connection {
    /// Writes bytes. The peer may have closed the connection.
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.reader.get_mut().write_all(bytes.as_ref()).is_ok()
    }

    /// Writes a response with a body.
    pub fn respond(&mut self, status: &str, body: &str) -> bool {
        self.write(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
    }

    /// Reads the body of a request. Returns its content, or `None` if the connection ends before it is complete.
    pub fn read_body(&mut self, head: &Head) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        if let Some(length) = head.header("content-length") {
            body.resize(length.parse().unwrap(), 0);
            self.reader.read_exact(&mut body).ok()?;
        }
        if head.header("transfer-encoding").is_some() {
            loop {
                let size = usize::from_str_radix(&self.line()?, 16).unwrap();
                let mut chunk = vec![0; size];
                self.reader.read_exact(&mut chunk).ok()?;
                assert_eq!(self.line()?, "", "a chunk and the trailer section end with an empty line");
                if size == 0 {
                    break;
                }
                body.extend_from_slice(&chunk);
            }
        }
        Some(body)
    }

    /// Reads a line without its end.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line).ok()?;
        line.strip_suffix("\r\n").map(str::to_owned)
    }

    /// Returns whether Weir closes the connection within `MAX_WAIT` and sends nothing before.
    pub fn is_closed_by_weir(&mut self) -> bool {
        matches!(self.reader.fill_buf(), Ok([]))
    }
}

/// A provider. It answers bytes that are no request with 400, as servers do.
pub struct StrictProvider {
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<Head>>>,
    junk: Arc<Mutex<Vec<String>>>,
}

impl StrictProvider {
    /// Starts a provider. `respond` reads the body and writes the response; the connection closes if it returns `false`.
    pub fn start(respond: impl Fn(&Head, &mut Connection) -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (heads, junk) = (Arc::default(), Arc::default());
        let provider = Self { address, heads, junk };
        let (heads, junk, respond) = (provider.heads.clone(), provider.junk.clone(), Arc::new(respond));
        std::thread::spawn(move || {
            for (number, socket) in listener.incoming().map_while(Result::ok).enumerate() {
                let (heads, junk, respond) = (heads.clone(), junk.clone(), respond.clone());
                socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
                socket.set_nodelay(true).unwrap();
                let mut connection = Connection { reader: BufReader::new(socket) };
                std::thread::spawn(move || {
                    while let Some(line) = connection.line() {
                        let parts: Vec<&str> = line.split(' ').collect();
                        let [method, path, "HTTP/1.1"] = parts[..] else {
                            junk.lock().unwrap().push(line);
                            if !connection.respond("400 Bad Request", "no request") {
                                return;
                            }
                            continue;
                        };
                        let (method, path) = (method.to_owned(), path.to_owned());
                        let mut head = Head { connection: number, method, path, lines: Vec::new() };
                        while let Some(line) = connection.line().filter(|line| !line.is_empty()) {
                            let (name, value) = line.split_once(": ").unwrap();
                            head.lines.push(format!("{}: {value}", name.to_ascii_lowercase()));
                        }
                        heads.lock().unwrap().push(head.clone());
                        if !respond(&head, &mut connection) {
                            return;
                        }
                    }
                });
            }
        });
        provider
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The heads of all requests so far.
    pub fn heads(&self) -> Vec<Head> {
        self.heads.lock().unwrap().clone()
    }

    /// The connections on which the requests for paths that contain `path` arrived.
    pub fn connections(&self, path: &str) -> Vec<usize> {
        self.heads().iter().filter(|head| head.path.contains(path)).map(|head| head.connection).collect()
    }

    /// The lines that were read in place of a request.
    pub fn junk(&self) -> Vec<String> {
        self.junk.lock().unwrap().clone()
    }
}
