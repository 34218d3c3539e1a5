//! Checks the linked eBPF object before anybody loads it.
//!
//! A panic path that survived optimisation, or an LLVM trap for code it believes unreachable, is refused
//! by the kernel with a message that names nothing of the source ("last insn is not an exit or jmp", or an
//! unknown kfunc). Here the function and its callers are named.

use std::{collections::BTreeSet, fmt::Write as _};

use anyhow::{Context as _, Result, bail};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex, SymbolKind,
};

/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `src_reg` of a call to a function of the same object: `BPF_PSEUDO_CALL`.
const PSEUDO_CALL: u8 = 1;

/// A function that must not be in the object.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fault {
    name: String,
    /// Functions that call it, as far as they can be told.
    callers: BTreeSet<String>,
}

/// Fails, naming function, callers and remedy, when a panic or a trap is left in the object.
pub(crate) fn check(data: &[u8]) -> Result<()> {
    let faults = faults(data)?;
    if faults.is_empty() {
        return Ok(());
    }
    let mut message = String::from("the kernel would refuse this object:");
    for Fault { name, callers } in faults {
        let callers = match callers.len() {
            0 => "somewhere".to_owned(),
            _ => callers.into_iter().collect::<Vec<_>>().join(", "),
        };
        let _ = write!(message, "\n  {name}, reached from {callers}: {}", remedy(&name));
    }
    bail!(message)
}

fn remedy(name: &str) -> &'static str {
    if name == "__bpf_trap" {
        "LLVM found undefined behaviour on some path; look for unreachable_unchecked, transmuted enums and unchecked pointers"
    } else {
        "make the panic impossible; use get() or a mask for indices, and checked or wrapping arithmetic"
    }
}

fn is_forbidden(name: &str) -> bool {
    name == "__bpf_trap"
        || ["panic", "rust_begin_unwind", "unwrap_failed", "expect_failed", "slice_index_fail"]
            .iter()
            .any(|part| name.contains(part))
}

fn faults(data: &[u8]) -> Result<Vec<Fault>> {
    let file = object::File::parse(data).context("parse the object as ELF")?;
    let mut faults = Vec::new();
    for symbol in file.symbols() {
        let name = symbol.name().context("read a symbol name")?;
        if is_forbidden(name) {
            let callers = callers(&file, &symbol)?;
            // What is reached from other panics only goes away with them.
            if callers.is_empty() || callers.iter().any(|caller| !is_forbidden(caller)) {
                faults.push(Fault { name: name.to_owned(), callers });
            }
        }
    }
    faults.sort();
    Ok(faults)
}

/// Functions with a call to `callee`: by relocation, or (within one section) by a resolved offset.
fn callers(file: &object::File<'_>, callee: &object::Symbol<'_, '_>) -> Result<BTreeSet<String>> {
    let mut callers = BTreeSet::new();
    let home = callee.section_index();
    for section in file.sections().filter(|section| section.kind() == object::SectionKind::Text) {
        let code = section.data().context("read a section of code")?;
        let relocated: Vec<(u64, RelocationTarget)> =
            section.relocations().map(|(offset, relocation)| (offset, relocation.target())).collect();
        let (instructions, _) = code.as_chunks::<8>();
        for (offset, &[opcode, registers, _, _, a, b, c, d]) in (0u64..).step_by(8).zip(instructions) {
            if opcode != CALL {
                continue;
            }
            let (source, immediate) = if file.is_little_endian() {
                (registers >> 4, i32::from_le_bytes([a, b, c, d]))
            } else {
                (registers & 0xf, i32::from_be_bytes([a, b, c, d]))
            };
            let reaches = match relocated.iter().find(|(at, _)| *at == offset) {
                Some((_, RelocationTarget::Symbol(index))) if *index == callee.index() => true,
                Some((_, RelocationTarget::Symbol(index))) => {
                    let target = file.symbol_by_index(*index).context("read a relocation")?;
                    target.kind() == SymbolKind::Section
                        && target.section_index() == home
                        && relative(0, immediate) == callee.address()
                }
                Some(_) => false,
                None => {
                    source == PSEUDO_CALL
                        && home == Some(section.index())
                        && relative(offset, immediate) == callee.address()
                }
            };
            if reaches && let Some(caller) = function_at(file, section.index(), offset) {
                callers.insert(caller.to_owned());
            }
        }
    }
    Ok(callers)
}

/// Byte offset of the target of a call at `offset`: `immediate` counts instructions (of 8 bytes) from the next.
fn relative(offset: u64, immediate: i32) -> u64 {
    let distance = (i64::from(immediate) + 1) * 8;
    offset.wrapping_add_signed(distance)
}

fn function_at<'data>(file: &object::File<'data>, section: SectionIndex, offset: u64) -> Option<&'data str> {
    file.symbols()
        .filter(|symbol| symbol.section_index() == Some(section) && symbol.kind() == SymbolKind::Text)
        .find(|symbol| (symbol.address()..symbol.address() + symbol.size()).contains(&offset))
        .and_then(|symbol| symbol.name().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_and_traps_are_forbidden_but_not_programs() {
        for name in [
            "__bpf_trap",
            "_ZN4core9panicking18panic_bounds_check17h0123456789abcdefE",
            "_RNvNtCs1_4core9panicking18panic_bounds_check",
            "_ZN4core6option13unwrap_failed17h0123456789abcdefE",
        ] {
            assert!(is_forbidden(name), "{name}");
        }
        for name in ["from_wire", "memcpy", "NODES", "LICENSE"] {
            assert!(!is_forbidden(name), "{name}");
        }
    }

    #[test]
    fn a_call_counts_instructions_from_the_next_one() {
        assert_eq!(relative(16, 0), 24);
        assert_eq!(relative(16, -3), 0);
        assert_eq!(relative(0, -1), 0);
    }

    #[test]
    fn what_is_not_elf_is_refused() {
        assert!(check(b"not an object").is_err());
    }

    #[test]
    fn a_program_that_panics_is_named() {
        let object = testdata::object([0x85, 0x10, 0, 0, 0, 0, 0, 0], "core::panicking::panic");
        let message = format!("{:#}", check(&object).unwrap_err());
        assert!(message.contains("core::panicking::panic, reached from from_wire"), "{message}");
        assert!(message.contains("use get()"), "{message}");
    }

    #[test]
    fn a_program_without_panics_passes() {
        check(&testdata::object([0x95, 0, 0, 0, 0, 0, 0, 0], "encap")).unwrap();
    }

    /// A minimal relocatable BPF object, written by hand: the only compiler that could make one may not be
    /// installed where these tests run.
    mod testdata {
        /// One section of code: function `from_wire` of one instruction, then `callee` of one (exit).
        pub(super) fn object(instruction: [u8; 8], callee: &str) -> Vec<u8> {
            let mut strings = b"\0.text\0.symtab\0.strtab\0from_wire\0".to_vec();
            let callee_name = strings.len() as u32;
            strings.extend_from_slice(callee.as_bytes());
            strings.push(0);

            let mut code = instruction.to_vec();
            code.extend_from_slice(&[0x95, 0, 0, 0, 0, 0, 0, 0]);

            let mut symbols = vec![0; 24];
            symbols.extend(symbol(23, 0));
            symbols.extend(symbol(callee_name, 8));

            let code_at = 64u64;
            let symbols_at = code_at + code.len() as u64;
            let strings_at = symbols_at + symbols.len() as u64;
            let sections_at = strings_at + strings.len() as u64;

            let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            file.extend(1u16.to_le_bytes()); // ET_REL
            file.extend(247u16.to_le_bytes()); // EM_BPF
            file.extend(1u32.to_le_bytes());
            file.extend([0; 16]); // entry, program headers
            file.extend(sections_at.to_le_bytes());
            file.extend(0u32.to_le_bytes());
            for half in [64u16, 0, 0, 64, 4, 3] {
                file.extend(half.to_le_bytes());
            }
            file.extend(&code);
            file.extend(&symbols);
            file.extend(&strings);
            file.extend([0; 64]);
            file.extend(section(1, 1, 6, code_at, code.len(), [0, 0], 0)); // .text
            file.extend(section(7, 2, 0, symbols_at, symbols.len(), [3, 1], 24)); // .symtab
            file.extend(section(15, 3, 0, strings_at, strings.len(), [0, 0], 0)); // .strtab
            file
        }

        /// `Elf64_Sym` of a global function of one instruction in section 1.
        fn symbol(name: u32, address: u64) -> Vec<u8> {
            let mut bytes = name.to_le_bytes().to_vec();
            bytes.extend([0x12, 0]);
            bytes.extend(1u16.to_le_bytes());
            bytes.extend(address.to_le_bytes());
            bytes.extend(8u64.to_le_bytes());
            bytes
        }

        /// `Elf64_Shdr`.
        fn section(
            name: u32,
            kind: u32,
            flags: u64,
            at: u64,
            len: usize,
            link: [u32; 2],
            entry: u64,
        ) -> Vec<u8> {
            let mut bytes = name.to_le_bytes().to_vec();
            bytes.extend(kind.to_le_bytes());
            for word in [flags, 0, at, len as u64] {
                bytes.extend(word.to_le_bytes());
            }
            bytes.extend(link.iter().flat_map(|half| half.to_le_bytes()));
            bytes.extend(8u64.to_le_bytes());
            bytes.extend(entry.to_le_bytes());
            bytes
        }
    }
}
