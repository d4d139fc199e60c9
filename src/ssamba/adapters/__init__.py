"""ssamba's models behind the interfaces of other packages; nothing else imports these modules (docs/adapters.md).

| module | for | needs |
|---|---|---|
| ``ssamba.adapters.hear`` | HEAR 2021's common API | nothing more |
| ``ssamba.adapters.mteb`` | mteb, ``AbsEncoder`` | mteb |
| ``ssamba.adapters.s3prl`` | s3prl, ``UpstreamExpert`` | nothing more |
| ``ssamba.adapters.sklearn`` | scikit-learn, a transformer | scikit-learn |
| ``ssamba.adapters.xares`` | X-ARES, an encoder | nothing more |
"""
