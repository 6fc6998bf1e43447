//! Names to addresses: `/etc/hosts` read by ourselves, since a static binary has no NSS, then the system's
//! lookup.

use std::{
    io::{self, Read as _},
    net::{IpAddr, SocketAddr},
    path::Path,
};

/// Longest hosts file that is read. The supervisor writes one line per allowed destination.
const HOSTS_BYTES_MAX: u64 = 256 << 10;
/// How many addresses of one name are tried.
const ADDRESSES_MAX: usize = 8;

/// Addresses of `name`, in the order in which they are worth trying.
pub(crate) async fn resolve(hosts: &Path, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(literal) = name.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(literal, port)]);
    }
    // Read anew each time: it is small, and the supervisor may write it after our start.
    let listed = listed(hosts, name);
    if !listed.is_empty() {
        return Ok(listed.into_iter().map(|ip| SocketAddr::new(ip, port)).collect());
    }
    let found: Vec<_> = tokio::net::lookup_host((name, port)).await?.take(ADDRESSES_MAX).collect();
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(found)
}

/// The addresses that the hosts file alone gives to `name`.
pub(crate) fn listed(hosts: &Path, name: &str) -> Vec<IpAddr> {
    read(hosts).map(|text| look_up(&text, name)).unwrap_or_default()
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(HOSTS_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The addresses that the text of a hosts file gives to `name`.
fn look_up(text: &str, name: &str) -> Vec<IpAddr> {
    let name = name.trim_end_matches('.');
    text.lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_ascii_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|word| word.trim_end_matches('.').eq_ignore_ascii_case(name)).then_some(address)
        })
        .take(ADDRESSES_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_in_a_hosts_file_whatever_its_case_and_spacing() {
        let text = "# c\n127.0.0.1 localhost\n10.0.0.1\tother Collector.Example # collector.two\n::1 collector.example.\nbad collector.example\n";
        let found = look_up(text, "collector.EXAMPLE");
        assert_eq!(found, ["10.0.0.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
        assert!(look_up(text, "collector.two").is_empty());
        assert!(look_up(text, "example").is_empty());
    }

    #[tokio::test]
    async fn a_literal_address_needs_no_file() {
        let found = resolve(Path::new("/nonexistent"), "127.0.0.9", 80).await.unwrap();
        assert_eq!(found, ["127.0.0.9:80".parse().unwrap()]);
    }

    #[tokio::test]
    async fn the_hosts_file_given_is_the_one_that_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        std::fs::write(&path, "127.0.0.2 collector.example\n").unwrap();
        let found = resolve(&path, "collector.example", 4318).await.unwrap();
        assert_eq!(found, ["127.0.0.2:4318".parse().unwrap()]);
    }
}
