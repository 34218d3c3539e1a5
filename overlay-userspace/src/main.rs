//! The `overlay` binary.

fn main() -> std::process::ExitCode {
    overlay_userspace::cli::main()
}
