"""Words and codes by which headers name body parts and views, in the languages of hospitals.

Words are compared in capitals without accents; a word of several parts has blanks between them. They were collected for
this project: what they do not know counts as silence, not as a no.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


CHEST = _words("""
CHEST CHESTS CXR THORAX THORACES THX THOR LUNG LUNGS PULMO PULMONARY PULMON PULMONES PULMONAR TORAX TORACE TORACA
TORAKS LUNGE LUNGEN BRUSTKORB POUMON POUMONS PULMONAIRE PECHO PULMAO PULMOES PEITO POLMONE POLMONI LONGEN BORSTKAS
PIERSIOWA PIERSIOWEJ PŁUCA PŁUC PLUCA PLUC AKCIGER GOGUS LUNGOR BROSTKORG BRYSTKASSE KEUHKOT KEUHKO RINTAKEHA
HRUDNIK HRUDNIKU PLICE MELLKAS DADA PARU NGUC PHOI ΘΩΡΑΚΑΣ ΘΩΡΑΚΑ ΘΩΡΑΚΟΣ ГРУДНАЯ ГРУДНОИ ОГК ЛЕГКИЕ ЛЕГКИХ ТОРАКС
صدر الصدر
""")
CHEST_PARTS = ("胸部", "胸片", "흉부")
"""Written without blanks, so looked for anywhere in a text."""
OTHER = _words("""
ABDOMEN ABDOMINAL ABD KUB BAUCH BUIK ADDOME PELVIS PELVIC BECKEN BASSIN BEKKEN BACINO BACIA HIP HIPS HUFTE HUEFTE
HANCHE CADERA QUADRIL ANCA HEUP KNEE KNEES KNIE GENOU RODILLA JOELHO GINOCCHIO FOOT FEET FUSS VOET ANKLE CHEVILLE
TOBILLO CAVIGLIA ENKEL SPRUNGGELENK HAND HANDS MANO MAO WRIST POIGNET MUNECA PUNHO POLSO HANDGELENK ELBOW COUDE CODO
COTOVELO GOMITO ELLENBOGEN SHOULDER SHOULDERS SCHULTER EPAULE HOMBRO OMBRO SPALLA SCHOUDER CLAVICLE CLAVICULA
KLAVIKULA SCHLUSSELBEIN SCAPULA HUMERUS FOREARM RADIUS ULNA FEMUR TIBIA FIBULA LEG LEGS FINGER FINGERS THUMB TOE
TOES CALCANEUS HEEL EXTREMITY EXTREMITIES SKULL SCHADEL SCHAEDEL CRANE CRANEO CRANIO HEAD KOPF NECK SINUS SINUSES
NASAL ORBIT ORBITS MANDIBLE JAW TEETH TOOTH DENTAL PANOREX SPINE CSPINE TSPINE LSPINE TLSPINE SSPINE HWS BWS LWS
WIRBELSAULE RACHIS COLUMNA COLUNA COLONNA LUMBAR LUMBALE CERVICAL SACRUM COCCYX RIB RIBS RIPPEN COSTILLAS COSTELAS
STERNUM STERNON ESTERNON BREAST MAMMA MAMMOGRAPHY KIDNEY UROGRAPHY CYSTOGRAM ESOPHAGUS OESOPHAGUS BARIUM STOMACH
COLON BABYGRAM SCOLIOSIS SKOLIOSE WHOLEBODY ГОЛОВА ЧЕРЕП ПОЗВОНОЧНИК КИСТЬ СТОПА КОЛЕНО
""")
OTHER_PHRASES = ("WHOLE BODY", "UPPER ARM", "THORACIC SPINE", "GRIL COSTAL", "C SPINE", "T SPINE", "L SPINE")
OTHER_PARTS = ("腹部", "骨盆", "頭部", "腰椎", "颈椎", "頸椎", "膝", "복부")

LATERAL = _words("""
LAT LATERAL LATERALE LATERALIS LATL LTRL LATEROLATERAL LL RL PROFIL PROFILE PERFIL SEITLICH SEITE ZIJDELINGS BOCZNE
BOCZNA БОКОВАЯ БОКОВОИ BOCNY BOCNA SIVU YAN SAGITTAL
""")
LATERAL_PARTS = ("侧位", "側位", "側面", "측면")
FRONTAL = _words("""
PA AP FRONTAL FRONTALE POSTEROANTERIOR ANTEROPOSTERIOR FACE FRENTE PORTABLE BEDSIDE
""")
FRONTAL_PHRASES = ("P A", "A P", "POSTERO ANTERIOR", "ANTERO POSTERIOR")
FRONTAL_PARTS = ("正位", "正面", "后前位")
OBLIQUE = _words("""
OBL OBLIQUE OBLIQUA OBLICUA OBLIQUO SCHRAG SCHRAEG LPO RPO LAO RAO LLO RLO LORDOTIC APICAL LLD RLD DECUB DECUBITUS
""")
BOTH_VIEWS = (
    "2 VIEW",
    "2 VIEWS",
    "2V",
    "TWO VIEW",
    "TWO VIEWS",
    "2 EBENEN",
    "2 PROJECTIONS",
    "2 PROIEZIONI",
    "2 RICHTINGEN",
)

CHEST_CODES = frozenset(
    ("51185008", "43799004", "39607008", "816094009", "302551006", "T-D3000", "T-D3050", "T-28000", "R-FAB56")
)
FRONTAL_CODES = {"399348003": "AP", "272479007": "PA", "399033003": "", "R-10206": "AP", "R-10214": "PA"}
LATERAL_CODES = frozenset(("399067008", "399173006", "399198007", "30730003", "R-10236", "R-10232", "R-10228"))
OBLIQUE_CODES = _words("""
399182000 399184004 399236003 399135007 399356000 399006002 399038007 399312000 399059000 399160007 399132005 260427002
399004004 399325008
""")

_ACCENTS = re.compile(r"[\u0300-\u036f]")


def normalise(text: str) -> str:
    """Give a text in capitals, without accents, with single blanks for everything that is neither letter nor digit."""
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", text)).upper()
    # letters of other scripts that were taken apart are put together again
    return " ".join(re.sub(r"[\W_]+", " ", unicodedata.normalize("NFC", plain)).split())


def body_of(texts: Iterable[str]) -> tuple[bool, bool]:
    """Whether texts name the chest, and whether they name another part."""
    chest = other = False
    for text in texts:
        plain = normalise(text)
        words = set(plain.split())
        bare = plain.replace(" ", "")
        chest |= (
            bool(words & CHEST) or any(part in bare for part in CHEST_PARTS) or bare.startswith(("CHEST", "THORAX"))
        )
        other |= bare.startswith(("CHESTABD", "THORAXABD", "THORACOABD"))
        other |= bool(words & OTHER) or any(part in bare for part in OTHER_PARTS)
        other |= any(f" {phrase} " in f" {plain} " for phrase in OTHER_PHRASES)
    return chest, other


def view_of(texts: Iterable[str]) -> set[str]:
    """Which of the views ``frontal``, ``lateral`` and ``oblique`` texts name."""
    views: set[str] = set()
    for text in texts:
        plain = normalise(text)
        words, bare, padded = set(plain.split()), plain.replace(" ", ""), f" {plain} "
        if words & FRONTAL or any(p in bare for p in FRONTAL_PARTS) or any(f" {p} " in padded for p in FRONTAL_PHRASES):
            views.add("frontal")
        if words & OBLIQUE:
            views.add("oblique")
        elif words & LATERAL or any(part in bare for part in LATERAL_PARTS):
            views.add("lateral")
        if any(f" {phrase} " in padded for phrase in BOTH_VIEWS):
            views |= {"frontal", "lateral"}
    return views
