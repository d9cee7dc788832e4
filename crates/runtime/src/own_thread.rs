//! Types that stay on the thread that made them.
//!
//! Each worker carries its connections' bytes with nothing that another thread touches: no lock, no atomic that two cores
//! write, no task that moves. The compiler holds us to that where a type says so: it is neither `Send` nor `Sync`, or
//! [`stays_on_its_thread!`](crate::stays_on_its_thread) does not compile.

use std::marker::PhantomData;

/// A field of no size that keeps a type on its thread whose other fields could leave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnThread(PhantomData<*const ()>);

/// Compiles only if none of the types is `Send` or `Sync`.
///
/// Each trait below has one method for all types, and one more for those that could leave their thread: then the
/// compiler can't tell which of them is meant.
#[macro_export]
macro_rules! stays_on_its_thread {
    ($($type:ty),+ $(,)?) => {$(
        const _: fn() = || {
            trait OneOf<Which> {
                fn is_meant() {}
            }
            struct IfSend;
            struct IfSync;
            impl<T: ?Sized> OneOf<()> for T {}
            impl<T: ?Sized + Send> OneOf<IfSend> for T {}
            impl<T: ?Sized + Sync> OneOf<IfSync> for T {}
            let _ = <$type as OneOf<_>>::is_meant;
        };
    )+};
}

crate::stays_on_its_thread!(OwnThread, std::rc::Rc<u8>);
