//! Requests to the examples that are not upgrades.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::child::PATIENCE;

pub(crate) fn get(addr: &str, path: &str) -> (u16, String) {
    request(addr, "GET", path, "")
}

pub(crate) fn post(addr: &str, path: &str, body: &str) -> (u16, String) {
    request(addr, "POST", path, body)
}

/// Returns the status and the body of the response.
fn request(addr: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut http = TcpStream::connect(addr).unwrap();
    http.set_read_timeout(Some(PATIENCE)).unwrap();
    // HTTP/1.0, so that the body is not chunked.
    let head = format!("{method} {path} HTTP/1.0\r\nhost: example\r\n");
    let length = format!("content-length: {}\r\n\r\n", body.len());
    http.write_all(format!("{head}{length}{body}").as_bytes())
        .unwrap();
    let mut response = String::new();
    http.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}
