//! Enclave image files, as a user builds them: with the program `enclave-image`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::scene::{Scene, product};

/// The program under test.
pub(crate) fn tool() -> PathBuf {
    let directory = std::env::var_os("ENCLAVE_TEST_IMAGE_TOOL");
    let path = PathBuf::from(directory.unwrap_or_default()).join("enclave-image");
    assert!(
        path.is_file(),
        "enclave-image is not built (ENCLAVE_TEST_IMAGE_TOOL names its directory): run `cargo xtask test`"
    );
    path
}

/// A built image.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    /// `PCR0`, `PCR1`, `PCR2` as they were printed.
    pub(crate) pcrs: BTreeMap<String, String>,
}

/// What a run of `enclave-image` said.
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `enclave-image` to its end.
pub(crate) fn run(words: &[String]) -> Said {
    let mut command = Command::new(tool());
    // Options are given, never picked up from whoever runs the tests.
    for (variable, _) in std::env::vars_os() {
        let variable = variable.to_string_lossy().into_owned();
        if variable.starts_with("ENCLAVE_") || ["NITRO_CLI_BLOBS", "SOURCE_DATE_EPOCH"].contains(&&*variable)
        {
            command.env_remove(variable);
        }
    }
    let output = command.args(words).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// Builds an image of everything in the scene for `manifest`, which is written into it. `more` are further
/// options.
pub(crate) fn build(scene: &Scene, manifest: &Value, more: &[&str]) -> Image {
    scene.write("manifest.yaml", &manifest.to_string());
    let output = scene.path("image.eif");
    let mut words = vec!["build".to_owned(), format!("--manifest={}", scene.path("manifest.yaml").display())];
    for plugin in std::fs::read_dir(scene.path("plugins")).unwrap() {
        let plugin = plugin.unwrap().path();
        let name = plugin.file_name().unwrap().to_str().unwrap();
        words.push(format!("--image={name}=dir:{}", plugin.display()));
    }
    let config = scene.path("config");
    if config.is_dir() {
        words.push(format!("--config-dir={}", config.display()));
    }
    words.extend(more.iter().map(|&word| word.to_owned()));
    made(&output, words)
}

/// Turns a Docker image into an enclave image, as `nitro-cli build-enclave` does.
pub(crate) fn wrap(archive: &Path, bootstrap: &Path, output: &Path, more: &[&str]) -> Image {
    let mut words = vec![
        "wrap".to_owned(),
        format!("--image=docker-archive:{}", archive.display()),
        format!("--bootstrap={}", bootstrap.display()),
    ];
    words.extend(more.iter().map(|&word| word.to_owned()));
    made(output, words)
}

fn made(output: &Path, mut words: Vec<String>) -> Image {
    let program = |name: &str| product(name).display().to_string();
    if words[0] == "build" {
        words.push(format!("--supervisor={}", program("enclave-supervisor")));
        words.push(format!("--telemetry={}", program("enclave-telemetry")));
    }
    words.push(format!("--output={}", output.display()));
    let said = run(&words);
    assert_eq!(said.code, Some(0), "{words:?}\n{}", said.stderr);
    let printed: Value = serde_json::from_str(&said.stdout).unwrap();
    let pcrs = printed["Measurements"].as_object().unwrap().iter();
    let pcrs = pcrs.filter(|(name, _)| name.starts_with("PCR"));
    let pcrs = pcrs.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect();
    Image { path: output.to_owned(), pcrs }
}
