"""The parts of Debian packages that debian_audio.py collects, with their kinds and licences."""

from __future__ import annotations

from typing import Any, NamedTuple


class Source(NamedTuple):
    """A part of a package.

    Attributes:
        name: its folder in OUT.
        package: the Debian package.
        kind: effects, ambience, music or speech.
        licence: of the files taken, as the package's copyright file has it.
        want: pattern of the paths of files or containers to read.
        skip: pattern of the paths, or of paths inside containers, to leave.
        most_minutes: no more than this is kept, of clips chosen over the whole package.
        clip_seconds: of each clip only so much, from its middle.
    """

    name: str
    package: str
    kind: str
    licence: str
    want: str = r"."
    skip: str = r"(?!)"
    most_minutes: float = 1e9
    clip_seconds: float = 1e9


MUSIC = r"(?i)/music|music/|/titles/"
_SPEECH: dict[str, Any] = {"most_minutes": 12.0}
_MUSIC: dict[str, Any] = {"want": MUSIC, "most_minutes": 12.0, "clip_seconds": 60.0}

SOURCES = (
    Source("7kaa", "7kaa-data", "effects", "GPL-2+", r"(?i)/(SOUND|RESOURCE/A_)", MUSIC),
    # Its fires are the recordings of ESC-10's 1-4211-A and 2-18766-B: its introduction has further seconds of one.
    Source(
        "ardentryst", "ardentryst", "ambience and effects", "CC BY-SA 3.0", r"/Sounds/", r"/(AMB|VOI)_|/fire_loop\."
    ),
    Source("atanks", "atanks-data", "effects", "GPL-2+", r"/sound/"),
    Source("berusky2", "berusky2-data", "effects", "GPL-2+", r"/sound/"),
    Source("boswars", "boswars-data", "effects", "GPL-2+", r"/(units|sounds)/", r"ready|completed|underattack"),
    Source("btanks", "btanks-data", "ambience and effects", "GPL-2 with an exception", r"/sounds/"),
    Source("bucklespring", "bucklespring-data", "effects", "GPL-2+"),
    Source("bzflag", "bzflag-data", "effects", "LGPL-2.1 or MPL"),
    Source("caveexpress", "caveexpress-data", "effects", "CC BY-SA 4.0", r"/sounds/", r"music"),
    Source("colobot", "colobot-common-sounds", "effects", "GPL-3+", skip=MUSIC),
    Source("crossfire", "crossfire-client", "effects", "GPL-2+", r"/sounds/"),
    Source("crrcsim", "crrcsim-data", "effects", "GPL-2", r"/sounds/"),
    Source("cube2", "cube2-data", "effects", "CC BY 3.0, CC BY-SA 3.0, CC BY-SA 4.0", r"/sounds/", r"/0ad/|/olpc/"),
    Source("endless_sky", "endless-sky-data", "effects", "public domain, CC BY-SA 3.0", r"/sounds/", r"/ambient/"),
    Source("etw", "etw-data", "effects", "GPL-2+", skip=MUSIC),
    Source("extremetuxracer", "extremetuxracer-data", "effects", "GPL-2+", r"/sounds/"),
    Source("flare", "flare-game", "ambience and effects", "CC BY-SA 3.0+", r"/soundfx/", r"/npcs/"),
    Source("flightgear", "flightgear-data-base", "effects", "GPL-2+", r"/Sounds/", r"/mk-viii/|/tcas/|/intro\."),
    Source("foobillard", "foobillardplus-data", "effects", "GPL-2", skip=MUSIC),
    Source("freecol", "freecol", "effects", "GPL-2+", r"/sound/(attack|event)/"),
    Source("freedroid", "freedroid-data", "effects", "GPL-2+", r"/sound/"),
    Source("freedroidrpg", "freedroidrpg-data", "effects", "GPL-2+", r"/sound/effects/", MUSIC),
    Source("freeorion", "freeorion-data", "effects", "CC BY-SA 3.0", r"/sound/combat/"),
    Source("freetennis", "freetennis-common", "effects", "GPL-2+"),
    Source(
        "gcompris",
        "gcompris-qt-data",
        "effects",
        "GPL-3+, CC BY(-SA), CC0, Free Art",
        r"\.rcc$",
        r"instruments|world_music",
    ),
    Source("heroes", "heroes-sound-effects", "effects", "GPL-2+"),
    Source("homedecor", "minetest-mod-homedecor", "effects", "CC BY-SA 4.0", skip=r"/fake_fire/"),
    Source("ktuberling", "ktuberling-data", "speech", "GPL-2+", **_SPEECH),
    Source("libreoffice", "libreoffice-common", "effects", "MPL-2.0", r"/gallery/sounds/"),
    Source("lincity", "lincity-ng-data", "effects", "GPL-2+", skip=MUSIC),
    Source("lugaru", "lugaru-data", "ambience and effects", "CC BY-SA 3.0", skip=r"Music"),
    Source("megaglest", "megaglest-data", "ambience and effects", "CC BY-SA 3.0", skip=MUSIC),
    # One of its fires is the recording of ESC-10's 1-4211-A: the others may be further seconds of it.
    Source("minetest", "minetest-data", "ambience and effects", "CC BY-SA 3.0, CC BY 3.0", skip=r"/mods/fire/"),
    Source("mobs_redo", "minetest-mod-mobs-redo", "effects", "MIT, CC0, CC BY 3.0"),
    Source("naev", "naev-data", "effects", "GPL-3, CC BY 3.0", r"/snd/sounds/"),
    Source("netpanzer", "netpanzer-data", "effects", "GPL-2+", r"/sound/"),
    Source(
        "nexuiz",
        "nexuiz-data",
        "ambience and effects",
        "GPL-2+",
        r"\.pk3$",
        r"/(announcer|coms|ctf|domination|kh|nexball|onslaught|tutorial)/|radio|tuba_note",
    ),
    Source("openarena", "openarena-data", "effects", "GPL-2+", r"\.pk3$", MUSIC),
    Source("openarena_players", "openarena-081-players", "effects", "GPL-2+", r"\.pk3$", r"taunt"),
    Source("opencity", "opencity-data", "effects", "GPL-2+", skip=MUSIC),
    Source("openclonk", "openclonk-data", "ambience and effects", "ISC, CC BY 3.0, CC0", r"\.oc[dgfs]$", MUSIC),
    # Its lumber mills are the recordings of ESC-10's 1-19898-C and 4-169127-B, some from other seconds.
    Source("opensfx", "openttd-opensfx", "effects", "CC BY-SA 3.0", skip=r"!005[4-6]\."),
    # In English alone lie the sounds too; what other languages have is speech.
    Source(
        "planetblupi",
        "planetblupi-common",
        "effects",
        "GPL-3+",
        r"/sound/en/",
        r"/(0[2-9]|10|14|1[7-9]|27|33|37|5[6-9]|6\d|7[0-3])\.wav$",
    ),
    Source("plee_the_bear", "plee-the-bear-data", "effects", "CC BY-SA 3.0", r"/sound/"),
    # Its clock is the recording of ESC-10's 4-188033-A: the watch may be further seconds of it.
    Source("qabcs", "qabcs-data", "effects", "GPL-3+", r"/noises/", r"/(clock|watch)\.ogg$"),
    Source(
        "redeclipse",
        "redeclipse-data",
        "ambience and effects",
        "CC BY-SA 3.0, CC BY 3.0",
        r"/sounds/(ambience|interface|player|sfx|weapons)/",
    ),
    Source("scorched3d", "scorched3d-data", "effects", "GPL-2+, CC BY-SA 3.0", skip=MUSIC),
    Source("scratch", "scratch", "effects", "GPL-2", r"/Sounds/(Animal|Effects|Human)/"),
    Source("searchandrescue", "searchandrescue-data", "effects", "GPL", skip=MUSIC),
    # Its felling is the recording of ESC-10's 4-169127-B: the other saw may be further seconds of it.
    Source("simutrans", "simutrans-pak64", "effects", "Artistic-1.0", r"/sound/", r"/(buzzsaw|tree-cutting)\."),
    Source("starfighter", "starfighter-data", "effects", "GPL-2+", r"/sound/"),
    Source("supertux", "supertux-data", "effects", "GPL-3+", r"/sounds/"),
    Source(
        "supertuxkart",
        "supertuxkart-data",
        "effects",
        "GPL-3+, GPL-2+, CC BY(-SA) 3.0, CC0",
        r"/sfx/|/library/|/karts/|/(cow|sheep|button)\.ogg$|/spaceship",
        r"radio|airport_pa|flute|/gp_end",
    ),
    Source("torcs", "torcs-data", "effects", "GPL-2+", r"/data/sound/"),
    Source("trackballs", "trackballs-data", "effects", "GPL-2+", r"/sfx/"),
    Source("trigger_rally", "trigger-rally-data", "effects", "GPL-2+, CC0", skip=MUSIC),
    Source(
        "triplea",
        "triplea",
        "effects",
        "GPL-2+",
        r"/assets/sounds/",
        r"required_your_turn|game_start|game_won|Anthem|preindustrial/political",
    ),
    Source("tuxfootball", "tuxfootball", "effects", "GPL-2+", r"/sound/.*\.wav$"),
    Source("tuxpaint", "tuxpaint-stamps-default", "effects", "GPL-2", r"/stamps/", r"_desc"),
    Source("tuxpaint_magic", "tuxpaint-plugins-default", "effects", "GPL-2+", r"/sounds/magic/"),
    Source("tuxpaint_speech", "tuxpaint-stamps-default", "speech", "GPL-2", r"/stamps/.*_desc", **_SPEECH),
    Source(
        "ufoai",
        "ufoai-sound",
        "ambience and effects",
        "GPL-2+, CC BY(-SA) 3.0",
        r"\.pk3$",
        r"/music/|radiomessage|tv_news",
    ),
    Source("unknown_horizons", "unknown-horizons", "ambience and effects", "CC BY-SA 3.0", r"audio/sounds/"),
    Source("unknown_horizons_music", "unknown-horizons", "music", "CC BY-SA 3.0", **_MUSIC),
    Source("warmux", "warmux-data", "effects", "GPL-2+", skip=MUSIC),
    Source("warzone2100", "warzone2100-data", "effects", "GPL-2+", r"\.wz$", MUSIC),
    Source("wesnoth_sounds", "wesnoth-1.16-data", "ambience and effects", "GPL-2+", r"/sounds/", MUSIC),
    Source("widelands", "widelands-data", "effects", "GPL-2+", r"/sound/"),
    Source("widelands_music", "widelands-data", "music", "GPL-2+, CC BY-SA 3.0", **_MUSIC),
    Source("wing", "wing-data", "effects", "GPL", r"/sound/"),
    Source(
        "wordwarvi",
        "wordwarvi-sound",
        "effects",
        "CC BY-SA 3.0",
        skip=r"destiny|dtox|highscore|lucky|UseTheSource|/yay|hohoho_|help_|abducted",
    ),
)
