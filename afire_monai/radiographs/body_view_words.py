"""Words and codes for body parts and views, in the languages of archives."""

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
CHEST_STARTS = ("THORAX", "LUNGEN", "LUNGRONTGEN", "LUNGROENTGEN", "BROSTKORG", "KLATK")
"""Beginnings of compound words."""
CHEST_PHRASES = ("RP FACE", "RP PROFIL", "RP DE FACE", "RP DE PROFIL", "TX PA", "TX AP")
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
ANTEBRAZO CODO HUMERO ESCAPULA SACRO PIERNA CALCANEO DEDO DEDOS PARRILLA TOBILLOS SACROCOXIS ANTEBRACO UMERO COXA PERNA
TORNOZELO ABDOME BASSIN CUISSE JAMBE PIED PIEDS DOIGT DOIGTS ORTEIL ORTEILS SACRUM ASP CAVUM AVAMBRACCIO
OMERO EMICOSTATO RACHIDE FEMORE GAMBA PIEDE DITO PALEC LWK TWK BWK HWK DXA ELLEBOOG HANDLED HOFT KNA FOTLED FOT
TUMME BACKEN SKALLE NADGARSTEK PRZEDRAMIE ŁOKIEC LOKIEC RAMIE BARK OBOJCZYK MIEDNICA BIODRO UDO KOLANO PODUDZIE STAW
STOPA CZASZKA ZATOKI BRZUSZNA BRZUCH REKA DIRSEK OMUZ VERTEBRA LOMBER SERVIKAL KALCA UYLUK DIZ BACAK AYAK PARMAK KAFA
BATIN PELVIK FEMORA PATELLA DAUMEN ZEHE ZEHEN ARM ARMS THORACOLUMBAR SPALLE COUDES CRANIUM EPAULES PUBIS
KOLUMNA VINGER ESTERNO STERNO MOSTEK
""")
MAYBE_OTHER = _words("""
RIB RIBS RIPPEN COSTILLAS COSTELAS COSTE ZEBRA ŻEBRA REVBEN RIBBEN KOSTA COSTAL COSTAIS CLAVICLE CLAVICULA KLAVIKULA
PIE PIED PIEDS MAIN AXEL TEEN POLS ARM ARMS
""")
"""Parts beside the lungs, and words that also mean something else: other parts only where no chest is named."""
OTHER_STEMS = _words("""
GELENK WIRBELSAUL WIRBELSAEUL UNTERARM OBERARM OBERSCHENKEL UNTERSCHENKEL SCHLUSSELBEIN SCHLUESSELBEIN BRUSTBEIN
KREUZBEIN STEISSBEIN BECKEN SCHADEL SCHAEDEL KIEFER VORFUSS MITTELFUSS FERSENBEIN MITTELHAND GROSSZEHE NEBENHOHL
NEBENHOEHL ABDOMEN GANZBEIN GANZKORPER GANZKOERPER RIPPENTHORAX HEMITHORAX WERVEL BOVENARM ONDERARM BOVENBEEN ONDERBEEN
SLEUTELBEEN BORSTBEEN SCHEDEL BUIK SCHOUDER RYGG UNDERARM OVERARM LARBEN UNDERBEN NYCKELBEN ARMBAG BUKOVER KREGOSŁUP
KREGOSLUP
""")
"""Looked for anywhere in a word."""
OTHER_PHRASES = ("WHOLE BODY", "UPPER ARM", "THORACIC SPINE", "GRIL COSTAL", "C SPINE", "T SPINE", "L SPINE",
                 "KNOCHERNER THORAX", "THORAX KNOCHERN", "KNOECHERNER THORAX", "TORAX OSEO", "PARRILLA COSTAL",
                 "ARCOS COSTAIS", "AVANT BRAS", "EL BILEGI", "ON KOL", "SINUS FACE", "SEIOS DA FACE", "BONY THORAX",
                 "SHUNT SERIES",
                 "RACHIS DORSAL")  # fmt: skip
STANDING = ("DE PIE", "EN PIE")
"""Spanish for upright, and no foot."""
OTHER_PARTS = ("腹部", "骨盆", "頭部", "腰椎", "颈椎", "頸椎", "膝", "복부",
               "手正位", "手斜位", "手関節", "手指", "腕关节", "腕関節", "前臂", "前腕", "肘",
               "肱骨", "上腕", "肩", "胸骨", "胸椎", "胸腰椎", "脊椎", "脊柱", "骨盤",
               "髋", "股", "大腿", "下腿", "胫", "腓骨", "踝", "足", "跟骨",
               "头颅", "頭蓋", "鼻窦", "副鼻腔")  # fmt: skip
MAYBE_OTHER_PARTS = ("锁骨", "鎖骨", "肋骨")

LATERAL = _words("""
LAT LATERAL LATERALE LATERALIS LATL LTRL LATEROLATERAL LL RL PROFIL PROFILE PERFIL SEITLICH SEITE ZIJDELINGS BOCZNE
BOCZNA БОКОВАЯ БОКОВОИ BOCNY BOCNA SIVU YAN SAGITTAL
SEITL SEITBILD ANLIEGEND TRANSVERSAL PERF LADO LLAT RLAT LATERAAL DWARS SIDA SIDOBILD SIDOPROJEKTION BOK BOCZNEJ BOCZNY
""")
LATERAL_PHRASES = ("LI ANL", "RE ANL", "L L")
LATERAL_ENDS = ("CHEST L", "THORAX L", "THORAX S", "TORAX L", "TORAX P", "TORACE L")
"""Whole texts."""
LATERAL_PARTS = ("侧位", "側位", "側面", "측면")
FRONTAL = _words("""
PA AP DV VD FRONTAL FRONTALE POSTEROANTERIOR ANTEROPOSTERIOR FACE FRENTE PORTABLE BEDSIDE VOORACHTERWAARTS
""")
FRONTAL_PHRASES = ("P A", "A P", "D V", "ON ARKA", "POSTERO ANTERIOR", "ANTERO POSTERIOR")
FRONTAL_PARTS = ("正位", "正面", "后前位")
OBLIQUE = _words("""
OBL OBLIQUE OBLIQUA OBLICUA OBLIQUO SCHRAG SCHRAEG LPO RPO LAO RAO LLO RLO LORDOTIC APICAL LLD RLD DECUB DECUBITUS
""")
BOTH_VIEWS = ("2 VIEW", "2 VIEWS", "2V", "TWO VIEW", "TWO VIEWS", "2 EBENEN", "2 PROJECTIONS", "2 PROIEZIONI",
              "2 RICHTINGEN")  # fmt: skip

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
    """Return a text in capitals, without accents, with a single blank for all but letters and digits."""
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", text)).upper()
    # letters of other scripts that were decomposed are composed again
    return " ".join(re.sub(r"[\W_]+", " ", unicodedata.normalize("NFC", plain)).split())


def body_of(texts: Iterable[str]) -> tuple[bool, bool]:
    """Whether texts name the chest, and whether they name another part."""
    chest = other = maybe = False
    for text in texts:
        plain = normalise(text)
        padded = f" {plain} "
        for phrase in STANDING:
            padded = padded.replace(f" {phrase} ", " ")
        words, bare = set(padded.split()), plain.replace(" ", "")
        chest |= bool(words & CHEST) or any(part in bare for part in CHEST_PARTS)
        chest |= bare.startswith("CHEST") or any(word.startswith(CHEST_STARTS) for word in words)
        chest |= any(f" {phrase} " in padded for phrase in CHEST_PHRASES)
        other |= bare.startswith(("CHESTABD", "THORAXABD", "THORACOABD"))
        other |= bool(words & (OTHER - MAYBE_OTHER)) or any(part in bare for part in OTHER_PARTS)
        other |= any(stem in word for word in words for stem in OTHER_STEMS)
        other |= any(f" {phrase} " in padded for phrase in OTHER_PHRASES)
        maybe |= bool(words & MAYBE_OTHER) or any(part in bare for part in MAYBE_OTHER_PARTS)
    return chest, other or (maybe and not chest)


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
        elif (
            words & LATERAL
            or plain in LATERAL_ENDS
            or any(part in bare for part in LATERAL_PARTS)
            or any(f" {phrase} " in padded for phrase in LATERAL_PHRASES)
        ):
            views.add("lateral")
        if any(f" {phrase} " in padded for phrase in BOTH_VIEWS):
            views |= {"frontal", "lateral"}
    return views
