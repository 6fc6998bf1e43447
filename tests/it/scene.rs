//! What a test's enclave image holds, and the manifests for it. JSON is YAML, so most manifests are JSON.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

/// Applets that the tests' scripts use.
const APPLETS: [&str; 45] = [
    "sh",
    "cat",
    "chown",
    "chroot",
    "cut",
    "date",
    "dd",
    "df",
    "dmesg",
    "echo",
    "env",
    "grep",
    "head",
    "hostname",
    "id",
    "ls",
    "mkdir",
    "mkfifo",
    "mknod",
    "mount",
    "nc",
    "nsenter",
    "od",
    "ping",
    "pivot_root",
    "printf",
    "pwd",
    "readlink",
    "rm",
    "seq",
    "setsid",
    "sleep",
    "sort",
    "stat",
    "tail",
    "touch",
    "tr",
    "true",
    "umount",
    "unshare",
    "usleep",
    "wc",
    "wget",
    "xargs",
    "yes",
];

/// A directory with everything of one test in it.
pub(crate) struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    /// Nothing is baked in yet; any manifest is accepted.
    pub(crate) fn new() -> Self {
        let scene = Self { dir: tempfile::Builder::new().prefix("it-").tempdir().unwrap() };
        fs::create_dir(scene.path("plugins")).unwrap();
        scene.write("policy.json", r#"{"manifest": "any"}"#);
        scene
    }

    /// A scene with one busybox plugin called app.
    pub(crate) fn with_app() -> Self {
        let scene = Self::new();
        scene.busybox("app", json!({}));
        scene
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    pub(crate) fn write(&self, relative: &str, text: &str) {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A plugin's root file system, seen from outside.
    pub(crate) fn root(&self, plugin: &str) -> PathBuf {
        self.path(&format!("plugins/{plugin}/rootfs"))
    }

    /// Bakes in a plugin that has busybox. `config` is the image config's inner part.
    pub(crate) fn busybox(&self, plugin: &str, config: Value) {
        self.program(plugin, &image(plugin), Path::new("/bin/busybox"), config);
        let bin = self.root(plugin).join("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::rename(self.root(plugin).join("busybox"), bin.join("busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", bin.join(applet)).unwrap();
        }
    }

    /// Bakes in a plugin that has one static program in its root directory.
    pub(crate) fn program(&self, plugin: &str, image: &str, program: &Path, config: Value) {
        let root = self.root(plugin);
        fs::create_dir_all(root.join("etc")).unwrap();
        let copy = root.join(program.file_name().unwrap());
        fs::copy(program, &copy).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        let config = json!({"image": image, "config": config});
        self.write(&format!("plugins/{plugin}/config.json"), &config.to_string());
    }

    /// Bakes in hello.
    pub(crate) fn hello(&self, plugin: &str) {
        self.program(plugin, &image(plugin), &product("hello"), json!({"Entrypoint": ["/hello"]}));
    }

    /// host-proxy's command line for this scene's enclave and manifest.
    pub(crate) fn proxy_words(&self) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        vec![
            product("enclave-host-proxy").display().to_string(),
            "run".to_owned(),
            format!("--transport=unix:{}", path("v.sock")),
            format!("--manifest={}", path("manifest.yaml")),
            format!("--config-dir={}", path("config")),
            format!("--state-dir={}", path("state")),
            format!("--admin={}", path("admin.sock")),
            "--metrics-listen=127.0.0.1:0".to_owned(),
            "--health-listen=127.0.0.1:0".to_owned(),
            "--ingress-listen=127.0.0.1".to_owned(),
        ]
    }
}

/// The reference that a test's plugin is baked from.
pub(crate) fn image(plugin: &str) -> String {
    format!("test/{plugin}:1")
}

/// One of the product's static programs.
pub(crate) fn product(name: &str) -> PathBuf {
    let directory = std::env::var_os("ENCLAVE_TEST_BIN_DIR");
    let path = PathBuf::from(directory.unwrap_or_default()).join(name);
    assert!(
        path.is_file(),
        "the static {name} is not built (ENCLAVE_TEST_BIN_DIR names its directory): run `cargo xtask test`"
    );
    path
}

/// A user plugin that runs a shell script. As in Kubernetes, `$$` in it stands for `$`.
pub(crate) fn script(name: &str, script: &str) -> Value {
    json!({"name": name, "image": image(name), "command": ["/bin/sh", "-c", script]})
}

/// A user plugin that does nothing until it is told to stop.
pub(crate) fn idle(name: &str) -> Value {
    script(name, "exec sleep 1000")
}

/// A value with more fields.
pub(crate) fn with(mut value: Value, more: Value) -> Value {
    let (Value::Object(fields), Value::Object(more)) = (&mut value, more) else { panic!("two objects") };
    fields.extend(more);
    value
}

/// A deployment called `test` of these user plugins.
pub(crate) fn deployment(users: Value) -> Value {
    json!({
        "apiVersion": "k8s.oblv.com/v1alpha1",
        "kind": "NitroEnclaveDeployment",
        "metadata": {"name": "test"},
        "spec": {"userPlugins": users},
    })
}

/// A deployment with more under `spec`.
pub(crate) fn deployment_with(users: Value, more: Value) -> Value {
    let mut deployment = deployment(users);
    deployment["spec"] = with(deployment["spec"].take(), more);
    deployment
}
