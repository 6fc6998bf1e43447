//! Rules for one Rust source file.

use crate::Complaints;

/// A file this long is refused.
const FILE_LINES_MAX: usize = 1000;
/// A file with more lines than this outside its tests asks for a split.
const CODE_LINES_MAX: usize = 600;
/// Files that may have more, each with its reason.
const LONG_FILES: [(&str, &str); 0] = [];
const FUNCTION_LINES_MAX: usize = 70;
const MAIN_LINES_MAX: usize = 60;
const COLUMNS_MAX: usize = 110;
/// Names that say nothing about what is in a module.
const NAMES_REFUSED: [&str; 8] =
    ["utils", "util", "common", "helpers", "helper", "manager", "misc", "shared"];
/// The only directory for `unsafe`.
const UNSAFE_DIRECTORY: &str = "src/sys";

/// Unfinished work, put together here so that this file does not contain it.
fn marks_of_unfinished_work() -> [String; 5] {
    [
        format!("to{}!", "do"),
        format!("unimple{}!", "mented"),
        format!("FIX{}", "ME"),
        format!("XX{}", "X"),
        format!("#[ig{}", "nore"),
    ]
}

/// All complaints about one file.
pub(crate) fn check(path: &str, text: &str) -> Complaints {
    let plain = blank_out(text);
    let mut complaints = Vec::new();
    check_name(path, &mut complaints);
    check_length(path, text, &plain, &mut complaints);
    check_lines(path, text, &plain, &mut complaints);
    check_functions(path, &plain, &mut complaints);
    complaints
}

fn check_name(path: &str, complaints: &mut Complaints) {
    let parts = path.split('/').map(|part| part.trim_end_matches(".rs"));
    for part in parts.filter(|part| NAMES_REFUSED.contains(part)) {
        complaints.push(format!("{path}: `{part}` says nothing about what is in it; name the noun"));
    }
}

fn check_length(path: &str, text: &str, plain: &str, complaints: &mut Complaints) {
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        complaints.push(format!("{path}: {lines} lines; the limit is {FILE_LINES_MAX}"));
    }
    let code = if is_test_file(path) { 0 } else { test_module_line(plain).unwrap_or(lines) };
    if code > CODE_LINES_MAX && !LONG_FILES.iter().any(|(long, _)| *long == path) {
        complaints.push(format!(
            "{path}: {code} lines without tests; split it, or list it with its reason ({CODE_LINES_MAX})"
        ));
    }
    let is_main = path == "main.rs" || path.ends_with("src/main.rs");
    if is_main && lines > MAIN_LINES_MAX {
        complaints.push(format!("{path}: {lines} lines; main is wiring, at most {MAIN_LINES_MAX}"));
    }
}

fn check_lines(path: &str, text: &str, plain: &str, complaints: &mut Complaints) {
    let marks = marks_of_unfinished_work();
    let tests = if is_test_file(path) { 0 } else { test_module_line(plain).unwrap_or(usize::MAX) };
    for (index, (line, code)) in text.lines().zip(plain.lines()).enumerate() {
        let place = format!("{path}:{}", index + 1);
        let columns = line.chars().count();
        // A test's expected text stays as it is printed; comments and code around it can be broken.
        let is_test_text =
            index >= tests && !line.trim_start().starts_with("//") && code_columns(code) <= COLUMNS_MAX;
        // A row of a table in a module's documentation cannot be broken.
        let is_table_row =
            line.trim_start_matches([' ', '/', '!']).starts_with('|') && code.trim().is_empty();
        if columns > COLUMNS_MAX && !is_test_text && !is_table_row {
            complaints.push(format!("{place}: {columns} columns; the limit is {COLUMNS_MAX}"));
        }
        for mark in marks.iter().filter(|mark| line.contains(mark.as_str())) {
            complaints.push(format!("{place}: {mark} is unfinished work"));
        }
        if words(code).any(|word| word == "unsafe") && !path.starts_with(UNSAFE_DIRECTORY) {
            complaints.push(format!("{place}: unsafe belongs in {UNSAFE_DIRECTORY}"));
        }
    }
}

/// The columns of a line of [`blank_out`]'s text, without its indentation, strings and comments.
fn code_columns(code: &str) -> usize {
    code.split_whitespace().map(|word| word.chars().count() + 1).sum()
}

/// Measures every function outside tests, from the line of its `fn` to that of its last brace.
fn check_functions(path: &str, plain: &str, complaints: &mut Complaints) {
    if is_test_file(path) {
        return;
    }
    let lines: Vec<&str> = plain.lines().collect();
    let end = test_module_line(plain).unwrap_or(lines.len());
    for (index, line) in lines.iter().enumerate().take(end) {
        let mut before = words(line);
        if !before.any(|word| word == "fn") {
            continue;
        }
        // A function pointer's type has no name after `fn`.
        let Some(name) = before.next() else { continue };
        let length = function_lines(&lines[index..]);
        if length > FUNCTION_LINES_MAX {
            complaints.push(format!(
                "{path}:{}: fn {name} has {length} lines; the limit is {FUNCTION_LINES_MAX}",
                index + 1
            ));
        }
    }
}

/// Lines until the braces that open after the signature are closed; 1 for a declaration without a body.
fn function_lines(lines: &[&str]) -> usize {
    let mut depth = 0_usize;
    let mut brackets = 0_usize;
    for (index, line) in lines.iter().enumerate() {
        for character in line.chars() {
            match character {
                '(' | '[' => brackets += 1,
                ')' | ']' => brackets = brackets.saturating_sub(1),
                '{' => depth += 1,
                '}' if depth <= 1 => return index + 1,
                '}' => depth -= 1,
                // `[u8; 4]` in the signature is no end of a declaration.
                ';' if depth == 0 && brackets == 0 => return index + 1,
                _ => {}
            }
        }
    }
    lines.len()
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

fn is_test_file(path: &str) -> bool {
    path.split('/').any(|part| matches!(part, "tests" | "tests.rs" | "benches" | "fuzz"))
}

/// The 0-based line of the `#[cfg(test)]` that begins the tests at a file's end.
fn test_module_line(plain: &str) -> Option<usize> {
    let lines: Vec<&str> = plain.lines().collect();
    lines.iter().enumerate().position(|(index, line)| {
        line.trim() == "#[cfg(test)]"
            && lines
                .get(index + 1)
                .is_some_and(|next| words(next).any(|word| word == "mod") && next.contains('{'))
    })
}

/// The text with every character of comments, strings and character literals replaced by a space: what is
/// left has only braces that are code. Line breaks stay.
fn blank_out(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => 1 + string_end(&rest[1..]),
            'r' if !plain.ends_with(|c: char| c.is_alphanumeric() || c == '_') => {
                raw_string(rest).unwrap_or(0)
            }
            '\'' => character(rest).unwrap_or(0),
            _ => 0,
        };
        if length == 0 {
            plain.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            plain.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[length..];
        }
    }
    plain
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of a string's text with its closing quote.
fn string_end(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of `r"…"`, `r#"…"#`, …; none for a word that begins with r.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(body.find(&end).map_or(text.len(), |at| 1 + hashes + 1 + at + end.len()))
}

/// The length of a character literal; none for a lifetime.
fn character(text: &str) -> Option<usize> {
    let body = text.strip_prefix('\'')?;
    let first = body.chars().next()?;
    if first == '\\' {
        return body[1..].chars().next().and_then(|escaped| {
            let after = 1 + escaped.len_utf8();
            body[after..].find('\'').map(|at| 1 + after + at + 1)
        });
    }
    body[first.len_utf8()..].starts_with('\'').then(|| 1 + first.len_utf8() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_text(path: &str, text: &str, expected: &expect_test::Expect) {
        expected.assert_eq(&check(path, text).join("\n"));
    }

    #[test]
    fn a_long_function_is_named_with_its_line() {
        let text = format!(
            "//! x\n\nfn short(a: [u8; 4]) {{}}\n\npub async fn long() {{\n{}}}\n",
            "    f();\n".repeat(70)
        );
        check_text("a.rs", &text, &expect_test::expect!["a.rs:5: fn long has 72 lines; the limit is 70"]);
    }

    #[test]
    fn braces_in_strings_comments_and_characters_do_not_count() {
        let body =
            "    let _a = \"{ \\\" {\"; // {\n    let _b = '{'; /* { */\n    let _c = r#\"{ \" {\"#;\n"
                .repeat(20);
        let text = format!("fn f<'a>(_: &'a str) {{\n{body}}}\nfn g() {{\n}}\n");
        check_text("a.rs", &text, &expect_test::expect![""]);
    }

    #[test]
    fn tests_may_have_long_functions() {
        let body = format!("fn long() {{\n{}}}\n", "    f();\n".repeat(80));
        check_text("a.rs", &format!("#[cfg(test)]\nmod tests {{\n{body}}}\n"), &expect_test::expect![""]);
        check_text("tests/it/a.rs", &body, &expect_test::expect![""]);
    }

    #[test]
    fn a_file_is_too_long_without_its_tests_or_with_them() {
        let code = "fn f() {}\n".repeat(601);
        check_text(
            "a.rs",
            &format!("{code}#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(400)),
            &expect_test::expect![[r"
                a.rs: 1004 lines; the limit is 1000
                a.rs: 601 lines without tests; split it, or list it with its reason (600)"]],
        );
    }

    #[test]
    fn main_is_wiring() {
        let main = "fn f() {}\n".repeat(61);
        check_text(
            "b/src/main.rs",
            &main,
            &expect_test::expect!["b/src/main.rs: 61 lines; main is wiring, at most 60"],
        );
    }

    #[test]
    fn unsafe_is_code_in_src_sys_alone() {
        let text = "// unsafe is a word here\nfn f() {\n    unsafe { g() }\n}\n";
        check_text("src/a.rs", text, &expect_test::expect!["src/a.rs:3: unsafe belongs in src/sys"]);
        check_text("src/sys/spawn.rs", text, &expect_test::expect![""]);
        check_text("src/a.rs", "#![deny(unsafe_code)]\n", &expect_test::expect![""]);
    }

    #[test]
    fn unfinished_work_is_found_in_code_and_comments() {
        let text = marks_of_unfinished_work().map(|mark| format!("// {mark}\n")).concat();
        assert_eq!(check("a.rs", &text).len(), 5, "{text}");
    }

    #[test]
    fn long_lines_and_names_that_say_nothing_are_refused() {
        check_text(
            "src/utils/a.rs",
            &format!("// {}\n", "ä".repeat(108)),
            &expect_test::expect![[r"
                src/utils/a.rs: `utils` says nothing about what is in it; name the noun
                src/utils/a.rs:1: 111 columns; the limit is 110"]],
        );
    }

    #[test]
    fn only_the_expected_text_of_a_test_may_be_long() {
        let text = format!("const A: &str = \"{}\";\n", "a".repeat(110));
        check_text("tests/a.rs", &text, &expect_test::expect![""]);
        check_text("src/a.rs", &text, &expect_test::expect!["src/a.rs:1: 129 columns; the limit is 110"]);
        check_text("src/a.rs", &format!("#[cfg(test)]\nmod tests {{\n{text}}}\n"), &expect_test::expect![""]);
        check_text("src/a.rs", &format!("//! | {} |\n", "a".repeat(110)), &expect_test::expect![""]);
    }
}
