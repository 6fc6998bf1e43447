//! An inspection as text for people. What comes from the file is escaped: an image is no terminal program.

use std::fmt::{self, Write as _};

use crate::{
    inspect::{FilePart, Inspection, PluginPart},
    options::Format,
};

/// The inspection in a format.
pub fn write(inspection: &Inspection, format: Format) -> String {
    match format {
        Format::Text => text(inspection),
        Format::Json => format!("{:#}\n", serde_json::json!(inspection)),
    }
}

fn text(inspection: &Inspection) -> String {
    let mut out = String::new();
    // A String takes every write.
    write_text(inspection, &mut out).ok();
    out
}

fn write_text(inspection: &Inspection, out: &mut String) -> fmt::Result {
    let Inspection { bytes, version, architecture, crc_right, .. } = inspection;
    let crc = if *crc_right { "ok" } else { "WRONG" };
    writeln!(out, "{} · EIF version {version} · {architecture} · checksum {crc}", size(*bytes))?;
    for (name, value) in &inspection.measurements {
        writeln!(out, "{name} {value}")?;
    }
    if let Some(signature) = &inspection.signature {
        let problem = signature
            .problem
            .as_deref()
            .map_or_else(|| "valid".to_owned(), |p| format!("NOT VALID: {}", plain(p)));
        let subject = plain(&signature.subject);
        let (from, until) = (&signature.not_before, &signature.not_after);
        writeln!(out, "signed by {subject}, {from} to {until}: {problem}")?;
    }
    writeln!(out, "\ncommand line: {}", plain(&inspection.cmdline))?;
    if let Some(policy) = &inspection.policy {
        writeln!(out, "policy: {}", plain(&policy.to_string()))?;
    }
    if let Some(time) = inspection.build_time {
        writeln!(out, "build time: {time}")?;
    }
    if let Some(metadata) = &inspection.unmeasured_metadata {
        writeln!(out, "metadata (not measured): {}", plain(&metadata.to_string()))?;
    }
    writeln!(out, "\nSECTION        OFFSET       BYTES  FLAGS")?;
    for part in &inspection.sections {
        writeln!(out, "{:<10} {:>10} {:>11}  {}", part.kind, part.offset, part.bytes, part.flags)?;
    }
    if !inspection.plugins.is_empty() {
        writeln!(out, "\nPLUGIN        FILES       BYTES  IMAGE, PROGRAM, USER")?;
    }
    for (name, plugin) in &inspection.plugins {
        write_plugin(out, name, plugin)?;
    }
    for module in &inspection.modules {
        writeln!(out, "module {}", plain(module))?;
    }
    for file in inspection.files.iter().flatten() {
        let FilePart { ramdisk, path, mode, uid, gid, bytes } = file;
        writeln!(out, "{ramdisk} {mode:06o} {uid:>5}:{gid:<5} {bytes:>10} {path}")?;
    }
    let Inspection { memory_min_mib, memory_unpacked_mib, unpacked_bytes, .. } = inspection;
    writeln!(
        out,
        "\n--memory: at least {memory_min_mib} MiB (four times the file, which nitro-cli requires);"
    )?;
    writeln!(
        out,
        "unpacked it is {}, and the root file system takes at most half of the memory: {memory_unpacked_mib} \
         MiB",
        size(*unpacked_bytes)
    )
}

fn write_plugin(out: &mut String, name: &str, plugin: &PluginPart) -> fmt::Result {
    let PluginPart { image, base, config, files, bytes } = plugin;
    let words: Vec<String> = config.entrypoint.iter().chain(&config.cmd).map(|word| plain(word)).collect();
    let base = if *base { " (base image)" } else { "" };
    let program = if words.is_empty() { "the manifest's command".to_owned() } else { words.join(" ") };
    let user = if config.user.is_empty() { "root" } else { &config.user };
    let (name, image, user) = (plain(name), plain(image), plain(user));
    writeln!(out, "{name:<12} {files:>6} {bytes:>11}  {image}{base}, {program}, {user}")
}

/// A size for people.
fn size(bytes: u64) -> String {
    format!("{bytes} bytes ({:.1} MiB)", bytes as f64 / f64::from(1 << 20))
}

/// Without anything that a terminal would act on.
fn plain(text: &str) -> String {
    text.chars().fold(String::new(), |mut plain, c| {
        if c.is_control() {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
        plain
    })
}
