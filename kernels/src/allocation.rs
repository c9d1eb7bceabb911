//! What becomes of memory that is freed.

/// Keeps up to 256 MiB of freed memory for the next arrays, in place of giving it back at once: a run makes and drops arrays of some megabytes all the
/// time, and each page that comes back has to be mapped and cleared again. Arrays of 32 MiB and more go back.
///
/// Call it first of all, while there is one thread. Does nothing but with glibc's allocator on Linux.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const MIB: libc::c_int = 1 << 20;
        let settings = [
            (libc::M_MMAP_THRESHOLD, 32 * MIB),
            (libc::M_TRIM_THRESHOLD, 256 * MIB),
            (libc::M_TOP_PAD, 32 * MIB),
        ];
        for (name, value) in settings {
            // SAFETY: sets a number of the allocator, which any time allows; other threads would only race for it.
            unsafe { libc::mallopt(name, value) };
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_is_allocated_as_before() {
        super::keep_freed_memory();
        for megabytes in [1, 64, 2] {
            let bytes = vec![1_u8; megabytes << 20];
            assert_eq!(bytes.iter().map(|&byte| usize::from(byte)).sum::<usize>(), megabytes << 20);
        }
    }
}
