//! Reads a YAML text into a tree of [`Node`]s within hard limits.
//!
//! The text comes from the untrusted host. Depth and count of nodes are limited while reading, and anchors,
//! aliases, tags, directives and further documents are refused, so that time and memory stay proportional to
//! the text. JSON is YAML and needs no case of its own.

use std::collections::BTreeSet;

use granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, ScanError, options};

use super::node::{Entry, Node, Position, Value};
use super::path;
use super::report::Report;
use super::scalar::{Scalar, quoted};

/// Mappings and lists within each other. The deepest field of a manifest lies 12 deep; `kubectl get -o yaml`
/// adds metadata that goes deeper.
const DEPTH_MAX: usize = 24;
/// Scalars, lists and mappings in one text. A manifest of ten plugins has about 500.
const NODES_MAX: usize = 20_000;

/// Reads one document. `None` when there is no tree to check; the report says why.
pub(crate) fn read(text: &str, report: &Report) -> Option<Node> {
    let options = options! {
        disallow_directives: true,
        emit_unresolved_aliases: true,
        emit_comments: false,
        // Wider than ours, so that ours speaks first where it can; the scanner runs ahead of the events.
        flow_nesting_limit: DEPTH_MAX + 8,
        block_nesting_limit: DEPTH_MAX + 8,
    };
    let mut tree = Tree { report, open: Vec::new(), nodes: 0, root: None };
    let mut documents = 0;
    for step in Parser::new_from_str_with_options(text, options) {
        let (event, span) = match step {
            Ok(step) => step,
            Err(error) => {
                tree.syntax_error(&error);
                return None;
            }
        };
        let position = position(span.start);
        if matches!(event, Event::DocumentStart(..)) {
            documents += 1;
            if documents > 1 {
                report.add(position, "", "more than one document: only one is read");
                return None;
            }
        }
        tree.take(event, position).ok()?;
    }
    let root = tree.root.filter(|root| !root.is_null());
    if root.is_none() {
        report.add(Position::START, "", "the document is empty");
    }
    root
}

fn position(mark: Marker) -> Position {
    Position { line: mark.line().max(1), column: mark.col() + 1 }
}

fn too_deep() -> String {
    format!("nested deeper than {DEPTH_MAX} levels")
}

/// Reading stops; the report says why.
struct Stop;

/// The tree while it grows.
struct Tree<'r> {
    report: &'r Report,
    open: Vec<Open>,
    nodes: usize,
    root: Option<Node>,
}

/// A list or mapping whose end was not read yet.
enum Open {
    Sequence {
        position: Position,
        items: Vec<Node>,
    },
    Mapping {
        position: Position,
        entries: Vec<Entry>,
        keys: BTreeSet<String>,
        key: Option<(String, Position)>,
    },
}

impl Tree<'_> {
    fn take(&mut self, event: Event<'_>, position: Position) -> Result<(), Stop> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_properties(position, anchor, tag.is_some());
                let plain = style == ScalarStyle::Plain;
                self.place(Node { position, value: Value::Scalar(Scalar { text: text.into_owned(), plain }) })
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.refuse_properties(position, anchor, tag.is_some());
                self.open(Open::Sequence { position, items: Vec::new() }, position)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.refuse_properties(position, anchor, tag.is_some());
                let (entries, keys) = (Vec::new(), BTreeSet::new());
                self.open(Open::Mapping { position, entries, keys, key: None }, position)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                self.report.add(position, &self.path(), "aliases are not supported: write the value out");
                self.place(Node { position, value: Value::Refused })
            }
            Event::StreamStart | Event::StreamEnd | Event::DocumentStart(..) | Event::DocumentEnd => Ok(()),
            // The parser may learn new events; a tree that lacks one would not be what the text says.
            Event::Anchor(..) | _ => {
                self.report.add(position, &self.path(), "not supported here");
                Err(Stop)
            }
        }
    }

    fn refuse_properties(&self, position: Position, anchor: usize, tagged: bool) {
        if anchor != 0 {
            self.report.add(position, &self.path(), "anchors are not supported: write the value out");
        }
        if tagged {
            self.report.add(position, &self.path(), "tags are not supported");
        }
    }

    fn open(&mut self, open: Open, position: Position) -> Result<(), Stop> {
        if matches!(self.open.last(), Some(Open::Mapping { key: None, .. })) {
            self.report.add(position, &self.path(), "a key must be a string");
            return Err(Stop);
        }
        if self.open.len() >= DEPTH_MAX {
            self.report.add(position, &self.path(), too_deep());
            return Err(Stop);
        }
        self.open.push(open);
        Ok(())
    }

    fn close(&mut self) -> Result<(), Stop> {
        let node = match self.open.pop() {
            Some(Open::Sequence { position, items }) => Node { position, value: Value::Sequence(items) },
            Some(Open::Mapping { position, entries, .. }) => {
                Node { position, value: Value::Mapping(entries) }
            }
            None => return Ok(()),
        };
        self.place(node)
    }

    /// Puts a complete node where the text has it: as a key, a value, an item, or the root.
    fn place(&mut self, node: Node) -> Result<(), Stop> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            self.report.add(node.position, "", format!("more than {NODES_MAX} values"));
            return Err(Stop);
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::Sequence { items, .. }) => items.push(node),
            Some(Open::Mapping { entries, keys, key, .. }) => {
                let Some((name, position)) = key.take() else { return self.place_key(node) };
                // The first value of a repeated key stays; the repetition is reported.
                if keys.insert(name.clone()) {
                    entries.push(Entry { key: name, position, node });
                }
            }
        }
        Ok(())
    }

    fn place_key(&mut self, node: Node) -> Result<(), Stop> {
        let (path, position) = (self.path(), node.position);
        let Some(Open::Mapping { keys, key, .. }) = self.open.last_mut() else { return Err(Stop) };
        let Value::Scalar(scalar) = node.value else {
            // An alias, which was reported.
            return Err(Stop);
        };
        if keys.contains(&scalar.text) {
            let message = format!("the key {} is given twice", quoted(&scalar.text));
            self.report.add(position, &path::key(&path, &scalar.text), message);
        }
        *key = Some((scalar.text, position));
        Ok(())
    }

    /// Where reading is.
    fn path(&self) -> String {
        self.open.iter().fold(String::new(), |path, open| match open {
            Open::Sequence { items, .. } => path::index(&path, items.len()),
            Open::Mapping { key: Some((key, _)), .. } => path::key(&path, key),
            Open::Mapping { key: None, .. } => path,
        })
    }

    fn syntax_error(&self, error: &ScanError) {
        let message = if matches!(error.kind(), ErrorKind::RecursionLimitExceeded) {
            too_deep()
        } else {
            format!("not valid YAML: {}", error.info().replace(char::is_control, " "))
        };
        self.report.add(position(*error.marker()), &self.path(), message);
    }
}
