//! What an enclave image says about a baked plugin: the file `config.json` beside its root file system. The
//! image builder writes it, the supervisor reads it.

use serde::{Deserialize, Deserializer, Serialize};

/// The file `config.json`: an OCI image config, with the reference beside it. Other fields are of no concern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BakedConfig {
    /// The reference it was baked from.
    pub image: String,
    /// It belongs to the base image and stands in for whatever reference the manifest names.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub base: bool,
    /// What the image says about running it.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub config: ImageConfig,
}

/// The part of an OCI image config that matters for running it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// Program and leading arguments.
    #[serde(deserialize_with = "null_is_empty")]
    pub entrypoint: Vec<String>,
    /// Arguments, or the program without an entrypoint.
    #[serde(deserialize_with = "null_is_empty")]
    pub cmd: Vec<String>,
    /// `NAME=value` each.
    #[serde(deserialize_with = "null_is_empty")]
    pub env: Vec<String>,
    /// `""` is the root directory.
    #[serde(deserialize_with = "null_is_empty")]
    pub working_dir: String,
    /// `uid`, `uid:gid`, `name`, `name:group`, or `""` for root.
    #[serde(deserialize_with = "null_is_empty")]
    pub user: String,
}

/// `null` stands for "none" in what Docker writes.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_is_read_as_docker_writes_it_and_written_as_it_is_read() {
        let text = r#"{"image": "r/a:1", "architecture": "amd64", "rootfs": {"type": "layers"},
            "config": {"Entrypoint": ["/a"], "Cmd": null, "Env": ["A=1"], "WorkingDir": "/w", "User": "7"}}"#;
        let read: BakedConfig = serde_json::from_str(text).unwrap();
        assert_eq!((read.image.as_str(), read.base, read.config.cmd.len()), ("r/a:1", false, 0));
        assert_eq!((read.config.working_dir.as_str(), read.config.user.as_str()), ("/w", "7"));
        let again: BakedConfig = serde_json::from_str(&serde_json::to_string(&read).unwrap()).unwrap();
        assert_eq!(again, read);
        let bare: BakedConfig = serde_json::from_str(r#"{"image": "r/b:1", "config": null}"#).unwrap();
        assert_eq!(bare.config, ImageConfig::default());
    }
}
