//! Files that a plugin finds in its root file system.

use std::collections::BTreeMap;

use super::cursor::Cursor;
use super::filepath;
use super::name;
use super::scope::Scope;
use crate::control::{FILES_MAX, FileBytes, Files};

/// More volumes than this in one plugin are a mistake.
const VOLUMES_MAX: usize = 64;

/// One volume: files of a `ConfigMap` or `Secret` in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Unique in the plugin.
    pub name: String,
    /// The directory; absolute and normalised.
    pub container_path: String,
    /// Whether the plugin may change its copy. Read-only unless `readOnly: false`, as these volumes are in
    /// Kubernetes.
    pub read_only: bool,
    /// Where the files come from.
    pub source: Source,
    /// Which files, under which names; all of them under their keys when there is no list.
    pub items: Option<Vec<Item>>,
}

/// The object that holds a volume's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A `ConfigMap` by name.
    ConfigMap(String),
    /// A `Secret` by name. Its bytes are neither hashed nor logged.
    Secret(String),
}

/// One selected file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its key in the object.
    pub key: String,
    /// Its path beneath the volume's directory, normalised.
    pub path: String,
}

impl Source {
    /// The object's files among all that were synced.
    pub fn keys<'f>(&self, files: &'f Files) -> Option<&'f BTreeMap<String, FileBytes>> {
        match self {
            Self::ConfigMap(name) => files.config_maps.get(name),
            Self::Secret(name) => files.secrets.get(name),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ConfigMap(name) => write!(f, "ConfigMap {name}"),
            Self::Secret(name) => write!(f, "Secret {name}"),
        }
    }
}

impl Volume {
    /// The volume's files: path beneath `container_path`, and bytes. A key that is no file name is left out;
    /// with files at hand the check has refused it already.
    pub fn files<'f>(&self, files: &'f Files) -> Vec<(String, &'f FileBytes)> {
        let selected = self.keys(files);
        let named = |(key, bytes): (&'f str, &'f FileBytes)| match &self.items {
            None => vec![(key.to_owned(), bytes)],
            Some(items) => items.iter().filter(|i| i.key == key).map(|i| (i.path.clone(), bytes)).collect(),
        };
        selected.into_iter().flat_map(named).collect()
    }

    /// The keys this volume takes from its object, with their bytes.
    pub(crate) fn keys<'f>(&self, files: &'f Files) -> Vec<(&'f str, &'f FileBytes)> {
        let wanted = |key: &str| match &self.items {
            None => name::is_file_key(key),
            Some(items) => items.iter().any(|item| item.key == key),
        };
        let all = self.source.keys(files).into_iter().flatten();
        all.filter(|(key, _)| wanted(key)).map(|(key, bytes)| (key.as_str(), bytes)).collect()
    }
}

pub(super) fn check(list: &Cursor<'_>, plugin: &str, scope: &Scope<'_>) -> Vec<Volume> {
    let mut names = BTreeMap::new();
    let mut places = BTreeMap::new();
    let mut volumes = Vec::new();
    for item in list.items(VOLUMES_MAX) {
        let Some(mut fields) = item.mapping() else { continue };
        let name = fields.required("name");
        let place = fields.required("containerPath");
        let read_only = fields.field("readOnly").and_then(|c| c.boolean()).unwrap_or(true);
        let source = fields.required("source");
        fields.finish();
        let name = name.and_then(|c| unique(&c, name::label, &mut names, "volume name"));
        let found = source.as_ref().and_then(|source| check_source(source, scope));
        let Some(place) = place else { continue };
        let container_path = unique(&place, filepath::mount_point, &mut places, "containerPath");
        if let (Some(path), Some(judge)) = (&container_path, scope.context.place)
            && let Err(message) = judge.0(plugin, path)
        {
            place.error(message);
        }
        if let (Some(name), Some(container_path), Some((source, items))) = (name, container_path, found) {
            volumes.push(Volume { name, container_path, read_only, source, items });
        }
    }
    volumes
}

/// A string in its one form that stands once.
fn unique(
    cursor: &Cursor<'_>,
    parse: fn(&str) -> Result<String, String>,
    seen: &mut BTreeMap<String, String>,
    what: &str,
) -> Option<String> {
    let value = cursor.checked(parse(cursor.string()?))?;
    if let Some(first) = seen.get(&value) {
        cursor.error(format!("the {what} {value} is already used at {first}"));
        return None;
    }
    seen.insert(value.clone(), cursor.path.clone());
    Some(value)
}

fn check_source(cursor: &Cursor<'_>, scope: &Scope<'_>) -> Option<(Source, Option<Vec<Item>>)> {
    let mut fields = cursor.mapping()?;
    let config_map = fields.field("configMap");
    let secret = fields.field("secret");
    fields.finish();
    match (config_map, secret) {
        (Some(object), None) => check_object(&object, Source::ConfigMap, scope),
        (None, Some(object)) => check_object(&object, Source::Secret, scope),
        (Some(_), Some(_)) => {
            cursor.error("a volume has one source: either configMap or secret");
            None
        }
        (None, None) => {
            cursor.error("one of the fields configMap and secret is required");
            None
        }
    }
}

fn check_object(
    cursor: &Cursor<'_>,
    source: fn(String) -> Source,
    scope: &Scope<'_>,
) -> Option<(Source, Option<Vec<Item>>)> {
    let mut fields = cursor.mapping()?;
    let name = fields.required("name");
    let items = fields.field("items");
    fields.finish();
    let name_cursor = name?;
    let source = source(name_cursor.checked(name::object(name_cursor.string()?))?);
    let present = scope.context.files.map(|files| source.keys(files));
    if let Some(None) = present {
        name_cursor.error(format!("{source} was not delivered with the manifest"));
    }
    let present = present.flatten();
    let items = items.map(|list| check_items(&list, present, &source));
    if let (Some(keys), None) = (present, &items)
        && let Some(bad) = keys.keys().find(|key| !name::is_file_key(key))
    {
        let bad = super::scalar::quoted(bad);
        name_cursor
            .error(format!("{source} has the key {bad}, which is no file name; select others by items"));
    }
    Some((source, items))
}

fn check_items(
    list: &Cursor<'_>,
    present: Option<&BTreeMap<String, FileBytes>>,
    source: &Source,
) -> Vec<Item> {
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    let mut items = Vec::new();
    for cursor in list.items(FILES_MAX) {
        let Some(mut fields) = cursor.mapping() else { continue };
        let key = fields.required("key");
        let place = fields.required("path");
        fields.finish();
        let path = place.and_then(|c| unique(&c, filepath::relative, &mut places, "path"));
        let Some(key_cursor) = key else { continue };
        let key = key_cursor.string().and_then(|text| key_cursor.checked(name::file_key(text)));
        if let (Some(key), Some(present)) = (&key, present)
            && !present.contains_key(key)
        {
            key_cursor.error(format!("{source} has no key {key}"));
        }
        if let (Some(key), Some(path)) = (key, path) {
            items.push(Item { key, path });
        }
    }
    refuse_files_as_directories(list, &places);
    items
}

/// `a` cannot be a file when `a/b` is one too.
fn refuse_files_as_directories(list: &Cursor<'_>, places: &BTreeMap<String, String>) {
    for place in places.keys() {
        let parents = place.match_indices('/').map(|(at, _)| &place[..at]);
        if let Some(parent) = parents.into_iter().find(|parent| places.contains_key(*parent)) {
            list.error(format!("{parent} is a file here, so that {place} cannot lie beneath it"));
        }
    }
}
