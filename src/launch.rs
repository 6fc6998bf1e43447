//! What a plugin is started with: the manifest's fields over the image's, as Kubernetes merges them.

use std::{collections::BTreeMap, path::Path};

use enclave_protocol::image::ImageConfig;

/// Searched when neither the image nor the manifest sets `PATH`; Docker's default.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The manifest's side of a plugin's start.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Replaces the image's entrypoint, and with it the image's arguments.
    pub command: Option<&'a [String]>,
    /// Replaces the image's arguments.
    pub args: Option<&'a [String]>,
    /// Added to the image's variables, in order.
    pub env: &'a [(String, String)],
    /// Replaces the image's working directory.
    pub working_dir: Option<&'a str>,
}

/// Program, arguments, environment and working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// Program and arguments; empty when neither side names a program.
    pub argv: Vec<String>,
    /// In order, each name once.
    pub env: Vec<(String, String)>,
    /// Absolute.
    pub cwd: String,
}

/// Merges the manifest's wishes over the image's config.
pub fn merge(image: &ImageConfig, wanted: Wanted<'_>) -> Merged {
    let mut env: Vec<(String, String)> = vec![("PATH".to_owned(), PATH.to_owned())];
    for variable in &image.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        set(&mut env, name, value.to_owned());
    }
    for (name, value) in wanted.env {
        // As in Kubernetes a value sees the variables before it.
        let value = expand(value, &lookup(&env));
        set(&mut env, name, value);
    }
    let variables = lookup(&env);
    let (program, arguments) = match (wanted.command, wanted.args) {
        (Some(command), args) => (command, args.unwrap_or_default()),
        (None, Some(args)) => (image.entrypoint.as_slice(), args),
        (None, None) => (image.entrypoint.as_slice(), image.cmd.as_slice()),
    };
    let from_manifest = wanted.command.is_some() || wanted.args.is_some();
    let spelled = |word: &String| if from_manifest { expand(word, &variables) } else { word.clone() };
    let argv = program.iter().chain(arguments).map(spelled).collect();
    let cwd = wanted.working_dir.filter(|dir| !dir.is_empty()).unwrap_or(&image.working_dir);
    let cwd = Path::new("/").join(cwd).display().to_string();
    Merged { argv, env, cwd }
}

/// Sets a variable, whatever it was before.
pub fn set(env: &mut Vec<(String, String)>, name: &str, value: String) {
    match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => *old = value,
        None => env.push((name.to_owned(), value)),
    }
}

fn lookup(env: &[(String, String)]) -> BTreeMap<String, String> {
    env.iter().cloned().collect()
}

/// Replaces `$(NAME)` by the variable's value. An unknown name stays as it is; `$$(NAME)` gives `$(NAME)`.
fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut left = text;
    while let Some(at) = left.find('$') {
        expanded.push_str(&left[..at]);
        left = &left[at + 1..];
        if let Some(rest) = left.strip_prefix('$') {
            expanded.push('$');
            left = rest;
            continue;
        }
        let name = left.strip_prefix('(').and_then(|rest| rest.split_once(')'));
        match name.and_then(|(name, rest)| Some((variables.get(name)?, rest))) {
            Some((value, rest)) => {
                expanded.push_str(value);
                left = rest;
            }
            None => expanded.push('$'),
        }
    }
    expanded.push_str(left);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn argv(
        entrypoint: &[&str],
        cmd: &[&str],
        command: Option<&[&str]>,
        args: Option<&[&str]>,
    ) -> Vec<String> {
        let image = ImageConfig { entrypoint: words(entrypoint), cmd: words(cmd), ..ImageConfig::default() };
        let (command, args) = (command.map(words), args.map(words));
        let (command, args) = (command.as_deref(), args.as_deref());
        merge(&image, Wanted { command, args, env: &[], working_dir: None }).argv
    }

    #[test]
    fn command_and_args_replace_entrypoint_and_cmd_as_kubernetes_documents_it() {
        assert_eq!(argv(&["e"], &["c"], None, None), ["e", "c"]);
        assert_eq!(argv(&["e"], &["c"], Some(&["x"]), None), ["x"]);
        assert_eq!(argv(&["e"], &["c"], None, Some(&["y"])), ["e", "y"]);
        assert_eq!(argv(&["e"], &["c"], Some(&["x"]), Some(&["y"])), ["x", "y"]);
        assert_eq!(argv(&[], &["c", "d"], None, None), ["c", "d"]);
    }

    #[test]
    fn the_manifest_overrides_variables_and_sees_those_before() {
        let image = ImageConfig { env: words(&["A=image", "B=b"]), ..ImageConfig::default() };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let env = [pair("A", "manifest"), pair("C", "$(A)-$(B)-$(D)-$$(A)"), pair("D", "late")];
        let command = words(&["run", "--a=$(C)"]);
        let wanted = Wanted { command: Some(&command), args: None, env: &env, working_dir: Some("w") };
        let merged = merge(&image, wanted);
        assert_eq!(merged.argv, ["run", "--a=manifest-b-$(D)-$(A)"]);
        let names: Vec<&str> = merged.env.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["PATH", "A", "B", "C", "D"]);
        assert_eq!(merged.cwd, "/w");
    }

    #[test]
    fn a_lone_dollar_is_text() {
        let none = BTreeMap::new();
        assert_eq!(expand("100$ $( $(x $", &none), "100$ $( $(x $");
    }
}
