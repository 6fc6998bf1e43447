//! `enclave-supervisor check` and `digest`: what can be said of a manifest without running it.

use std::{fmt::Write as _, path::Path};

use enclave_protocol::{
    bundle::Bundle,
    control::Diagnostic,
    digest,
    manifest::{self, Context},
    signature,
};

use crate::{catalog::Catalog, options::Exit};

/// Text for standard output (`Ok`, mistakes in a manifest included) or for standard error, and the exit code.
pub type Said = Result<(String, Exit), (String, Exit)>;

/// Checks `file`, against the images in `plugins` and with the files in `config_dir` where given. Every
/// mistake is a line `FILE:LINE:COL: path: message`.
pub fn check_file(file: &Path, plugins: Option<&Path>, config_dir: Option<&Path>) -> Said {
    let Bundle { manifest: text, files } = Bundle::read(file, config_dir).map_err(unusable)?;
    let baked = match plugins {
        Some(dir) => {
            let (catalog, errors) =
                Catalog::read(dir).map_err(|error| unusable(format!("{}: {error}", dir.display())))?;
            if let Some(error) = errors.first() {
                return Err(unusable(error));
            }
            Some(catalog.images())
        }
        None => None,
    };
    let files = config_dir.map(|_| &files);
    let context = Context { files, baked: baked.as_ref(), reserved_host_ports: &[], ..Context::default() };
    match manifest::parse(&text, &context) {
        Ok(manifest) => {
            let mut said = format!("{}: ok\n", file.display());
            for condition in manifest.conditions() {
                // A String takes every write.
                writeln!(said, "{}: {}: {}", file.display(), condition.kind, condition.message).ok();
            }
            Ok((said, Exit::Ok))
        }
        Err(errors) => Ok((lines(file, &errors), Exit::Usage)),
    }
}

/// What `digest` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DigestForm {
    /// The digest, as a pinned policy has it.
    Line,
    /// The message to sign for a signed policy, byte for byte: no newline.
    SigningInput,
}

/// The digest of `file` with the files in `config_dir`; without one it covers no files.
pub fn digest_file(file: &Path, config_dir: Option<&Path>, form: DigestForm) -> Said {
    let Bundle { manifest, files } = Bundle::read(file, config_dir).map_err(unusable)?;
    let context = Context {
        files: config_dir.map(|_| &files),
        baked: None,
        reserved_host_ports: &[],
        ..Context::default()
    };
    match manifest::parse(&manifest, &context) {
        Ok(manifest) => {
            let digest = digest::digest(&manifest, &files);
            let said = match form {
                DigestForm::Line => format!("{digest}\n"),
                DigestForm::SigningInput => signature::signing_input(&digest),
            };
            Ok((said, Exit::Ok))
        }
        Err(errors) => Ok((lines(file, &errors), Exit::Usage)),
    }
}

fn lines(file: &Path, errors: &[Diagnostic]) -> String {
    let mut text = String::new();
    for error in errors {
        // A String takes every write.
        writeln!(text, "{}:{error}", file.display()).ok();
    }
    text
}

fn unusable(error: impl std::fmt::Display) -> (String, Exit) {
    (format!("{error}\n"), Exit::Usage)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use expect_test::expect;

    use super::*;

    fn manifests() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests")
    }

    /// What `check` says of a text, with the file called `FILE`.
    fn checked(text: &str) -> (String, Exit) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("manifest.yaml");
        std::fs::write(&file, text).unwrap();
        let (said, exit) = check_file(&file, None, None).unwrap();
        (said.replace(&file.display().to_string(), "FILE"), exit)
    }

    fn hello() -> String {
        std::fs::read_to_string(manifests().join("hello-fastapi.yaml")).unwrap()
    }

    #[test]
    fn a_valid_manifest_is_ok_and_what_it_does_not_get_is_said() {
        assert_eq!(checked(&hello()), ("FILE: ok\n".to_owned(), Exit::Ok));
        let asking = hello().replace("name: fastapi\n", "name: fastapi\n      logsAccess: true\n");
        assert_eq!(checked(&asking).1, Exit::Usage);
        let asking =
            hello().replace("\nspec:\n", "\nspec:\n  caCertDetails: {enclaveCertType: ENCLAVE_GENERATED}\n");
        let (said, exit) = checked(&asking);
        assert_eq!(exit, Exit::Ok);
        assert!(said.contains("FILE: NotImplemented: spec.caCertDetails.enclaveCertType"), "{said}");
    }

    #[test]
    fn every_mistake_has_file_line_column_and_path() {
        let (said, exit) = checked(&hello().replace("image:", "imge:"));
        assert_eq!(exit, Exit::Usage);
        expect![[r#"
            FILE:9:7: spec.userPlugins[0]: the field image is required
            FILE:10:7: spec.userPlugins[0].imge: unknown field "imge"; did you mean image?
            FILE:20:7: spec.plugins.telemetry.imge: unknown field "imge"; did you mean image?
        "#]]
        .assert_eq(&said);
        let broken = manifests().join("broken.yaml");
        let (said, exit) = check_file(&broken, None, None).unwrap();
        assert_eq!((said.lines().count(), exit), (32, Exit::Usage));
        assert!(said.lines().all(|line| line.starts_with(&format!("{}:", broken.display()))));
    }

    #[test]
    fn the_digest_is_the_same_for_any_number_of_replicas_and_covers_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let of = |replicas: u32, config_dir: Option<&Path>| {
            let file = dir.path().join("manifest.yaml");
            let text = hello()
                .replace("spec:\n  userPlugins", &format!("spec:\n  replicas: {replicas}\n  userPlugins"));
            std::fs::write(&file, text).unwrap();
            digest_file(&file, config_dir, DigestForm::Line).unwrap()
        };
        let (one, exit) = of(1, None);
        assert_eq!((one.len(), exit), (97, Exit::Ok));
        assert_eq!(of(5, None), (one.clone(), Exit::Ok));
        let config = dir.path().join("config");
        std::fs::create_dir_all(config.join("configmaps/telemetry-config")).unwrap();
        assert_eq!(of(1, Some(&config)).1, Exit::Usage);
        std::fs::write(config.join("configmaps/telemetry-config/config.yaml"), "scrape_configs: []\n")
            .unwrap();
        let (with_files, exit) = of(1, Some(&config));
        assert_eq!(exit, Exit::Ok);
        assert_ne!(with_files, one);
    }
}
