//! The command line and its environment variables.

use std::net::{Ipv4Addr, SocketAddr};

use clap::Parser;

/// A small plugin for demonstrations and tests.
#[derive(Debug, Parser)]
#[command(name = "hello", version)]
pub(crate) struct Options {
    /// Address to listen on; wins over --port
    #[arg(long, env = "ENCLAVE_HELLO_LISTEN", value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Port to listen on, on all addresses
    #[arg(long, env = "PORT", default_value_t = 8001, value_name = "PORT")]
    port: u16,
}

impl Options {
    /// Where to listen.
    pub(crate) fn address(&self) -> SocketAddr {
        self.listen.unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, self.port).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_the_one_given_or_the_port_on_all_addresses() {
        let address = |arguments: &[&str]| Options::parse_from(arguments).address().to_string();
        assert_eq!(address(&["hello", "--listen", "127.0.0.1:9"]), "127.0.0.1:9");
        assert_eq!(address(&["hello", "--port", "80"]), "0.0.0.0:80");
    }
}
