//! Judges a manifest: every mistake is found here, before anything is started.

use std::collections::BTreeMap;

use enclave_protocol::{
    control::{
        Condition, Diagnostic, FILES_BYTES_MAX, FILES_MAX, FileTree, Files, ManifestRequest, Pod, Problem,
    },
    digest::{self, Digest},
    manifest::{self, Context, Manifest, Place},
    policy::Policy,
};
use hyper::StatusCode;

use super::routes::problem;
use crate::{
    catalog::Catalog,
    deployment,
    net::plan::{Peers, Plan, PortShared},
    rootfs,
};

/// Longest instance id, in bytes: a label's value.
const INSTANCE_ID_MAX: usize = 253;

/// What a manifest is judged by; fixed at the start.
#[derive(Debug)]
pub struct Judge {
    /// The plugins in the image.
    pub catalog: Catalog,
    /// What the image says about manifests. An enclave's image without a policy runs none.
    pub policy: Option<Policy>,
    /// Whether each plugin has a network of its own.
    pub own_networks: bool,
    /// Said beside every accepted manifest.
    pub remarks: Vec<Condition>,
}

/// A manifest that passed.
#[derive(Debug)]
pub struct Candidate {
    /// The checked model.
    pub manifest: Manifest,
    /// The files it names.
    pub files: Files,
    /// Its digest.
    pub digest: Digest,
    /// The host's egress port.
    pub egress_port: u32,
    /// `service.instance.id`.
    pub instance_id: String,
    /// The pod that the host says it is.
    pub pod: Option<Pod>,
    /// Remarks to answer with.
    pub conditions: Vec<Condition>,
}

impl Judge {
    /// Judges one request.
    pub fn examine(&self, request: ManifestRequest) -> Result<Candidate, Box<Problem>> {
        let ManifestRequest { manifest: text, files, signature, egress_port, instance_id, pod } = request;
        bounded(&files)?;
        labelled(&instance_id, egress_port)?;
        let bad = |error: String| problem(StatusCode::BAD_REQUEST, "BadRequest", &error);
        pod.as_ref().map_or(Ok(()), Pod::check).map_err(bad)?;
        let baked = self.catalog.images();
        let place = |plugin: &str, path: &str| match self.catalog.get(plugin) {
            Some(baked) => rootfs::resolve(&baked.root, path).map(drop).map_err(|error| error.to_string()),
            // A missing image has its own mistake.
            None => Ok(()),
        };
        let context = Context {
            files: Some(&files),
            baked: Some(&baked),
            place: Some(Place(&place)),
            ..Context::default()
        };
        let manifest = manifest::parse(&text, &context).map_err(invalid)?;
        let errors = self.missing_plugins(&manifest);
        if !errors.is_empty() {
            return Err(invalid(errors));
        }
        let digest = digest::digest(&manifest, &files);
        let refused = |reason: &str| problem(StatusCode::FORBIDDEN, "PolicyRefused", reason);
        let Some(policy) = &self.policy else {
            return Err(refused("the image has no policy: it runs no manifest"));
        };
        policy.decide(&digest, signature.as_deref()).map_err(|refusal| refused(&refusal.to_string()))?;
        let mut conditions = manifest.conditions();
        conditions.extend(self.remarks.iter().cloned());
        conditions.extend(self.conflicts(&manifest));
        Ok(Candidate { manifest, files, digest, egress_port, instance_id, pod, conditions })
    }

    /// Ports that stand in each other's way.
    fn conflicts(&self, manifest: &Manifest) -> Vec<Condition> {
        let own_networks = self.own_networks;
        let served: Vec<_> =
            manifest.plugins.iter().map(|p| (p.name.as_str(), deployment::served(p))).collect();
        let ports: Vec<(&str, &[u16])> =
            served.iter().map(|(name, ports)| (*name, ports.as_slice())).collect();
        let condition = |kind: &str, message: String| Condition { kind: kind.to_owned(), message };
        // Plans that cannot be made are errors where they are used.
        let shared = Peers::new(&ports).map(|peers| peers.shared).unwrap_or_default();
        let shared = shared.into_iter().map(|shared| {
            let message = if own_networks {
                shared.to_string()
            } else {
                let PortShared { port, first, second } = shared;
                format!("{first} and {second} both serve port {port} in one network: one of them gets it")
            };
            condition("ContainerPortConflict", message)
        });
        let listening = || ports.iter().flat_map(|(name, ports)| ports.iter().map(|port| (*name, *port)));
        let taken = Plan::new(&manifest.plan().egress).map(|plan| {
            if own_networks { plan.own_conflicts(listening()) } else { plan.conflicts(listening()) }
        });
        let taken = taken.unwrap_or_default().into_iter();
        shared.chain(taken.map(|conflict| condition("EgressPortConflict", conflict.to_string()))).collect()
    }

    /// Plugins that are not in the image and that the manifest's checker could not miss: telemetry, whose
    /// image may be left out.
    fn missing_plugins(&self, manifest: &Manifest) -> Vec<Diagnostic> {
        let missing = manifest.plugins.iter().filter(|plugin| self.catalog.get(&plugin.name).is_none());
        missing.map(|plugin| plugin.diagnostic("is not baked into this image")).collect()
    }
}

fn bounded(files: &Files) -> Result<(), Box<Problem>> {
    let trees = || [&files.config_maps, &files.secrets].into_iter();
    let count: usize = trees().flat_map(BTreeMap::values).map(BTreeMap::len).sum();
    let bytes: usize = trees().map(tree_bytes).sum();
    let detail = if count > FILES_MAX {
        format!("{count} files, at most {FILES_MAX} are taken")
    } else if bytes > FILES_BYTES_MAX {
        format!("files of {bytes} bytes in all, at most {FILES_BYTES_MAX} are taken")
    } else {
        return Ok(());
    };
    Err(problem(StatusCode::PAYLOAD_TOO_LARGE, "FilesTooLarge", &detail))
}

fn tree_bytes(tree: &FileTree) -> usize {
    tree.values().flat_map(BTreeMap::values).map(|bytes| bytes.0.len()).sum()
}

fn labelled(instance_id: &str, egress_port: u32) -> Result<(), Box<Problem>> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/');
    let detail = if instance_id.is_empty() || instance_id.len() > INSTANCE_ID_MAX {
        format!("instanceId wants 1 to {INSTANCE_ID_MAX} bytes")
    } else if !instance_id.chars().all(legal) {
        "instanceId takes letters, digits and - _ . : /".to_owned()
    } else if egress_port == 0 || egress_port == u32::MAX {
        "egressPort is no port".to_owned()
    } else {
        return Ok(());
    };
    Err(problem(StatusCode::BAD_REQUEST, "BadRequest", &detail))
}

fn invalid(errors: Vec<Diagnostic>) -> Box<Problem> {
    let count = errors.len();
    let detail = if count == 1 { "one mistake".to_owned() } else { format!("{count} mistakes") };
    let problem = problem(
        StatusCode::UNPROCESSABLE_ENTITY,
        "ManifestInvalid",
        &format!("the manifest has {detail}; nothing was started"),
    );
    Box::new(Problem { errors, ..*problem })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Judges a good manifest by this policy.
    fn judged(policy: Option<Policy>) -> Result<Candidate, Box<Problem>> {
        judged_in(policy, None)
    }

    fn judged_in(policy: Option<Policy>, pod: Option<Pod>) -> Result<Candidate, Box<Problem>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("app/rootfs")).unwrap();
        std::fs::write(dir.path().join("app/config.json"), r#"{"image": "test/app:1"}"#).unwrap();
        let (catalog, _) = Catalog::read(dir.path()).unwrap();
        let manifest = json!({
            "apiVersion": "k8s.oblv.com/v1alpha1", "kind": "NitroEnclaveDeployment", "metadata": {"name": "test"},
            "spec": {"userPlugins": [{"name": "app", "image": "test/app:1", "command": ["/app"]}]},
        });
        Judge { catalog, policy, own_networks: false, remarks: Vec::new() }.examine(ManifestRequest {
            manifest: manifest.to_string(),
            files: Files::default(),
            signature: None,
            egress_port: 1,
            instance_id: "i".to_owned(),
            pod,
        })
    }

    #[test]
    fn an_image_without_a_policy_runs_no_manifest() {
        let problem = judged(None).unwrap_err();
        assert_eq!((problem.status, problem.kind.as_str()), (403, "PolicyRefused"));
        assert!(judged(Some(Policy::Any)).is_ok());
    }

    #[test]
    fn a_host_that_names_its_pod_badly_is_told_so() {
        let named = |name: &str| Some(Pod { name: Some(name.to_owned()), ..Pod::default() });
        let problem = judged_in(Some(Policy::Any), named("no pod")).unwrap_err();
        assert_eq!((problem.status, problem.kind.as_str()), (400, "BadRequest"));
        assert_eq!(judged_in(Some(Policy::Any), named("pod-1")).unwrap().pod, named("pod-1"));
    }
}
